"""Bytes and JSON from files, with every way in which a file can be unusable named."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import stat
import zlib
from pathlib import Path
from typing import Any

from evaluation.errors import InputError

_GZIP_MAGIC = b"\x1f\x8b"


class JsonSyntaxError(ValueError):
    """A text is not JSON; the message is the reason alone, for the caller to put a place in front."""


def check_file(path: Path) -> Path:
    """Return `path` with `~` expanded, after a look at the file system that opens nothing.

    Raises:
        InputError: There is no such file, it is a directory, it is empty, or it may not be read.
    """
    found = path.expanduser()
    try:
        state = found.stat()
    except OSError as error:
        raise InputError(
            f"data file '{path}' does not exist or is out of reach: {error.strerror} (current directory: "
            f"'{Path.cwd()}'). Correct data.path in the config."
        ) from error
    if not stat.S_ISREG(state.st_mode):
        raise InputError(f"data file '{path}' is a directory or device, not a file. Name one file in data.path.")
    if not os.access(found, os.R_OK):
        raise InputError(f"data file '{path}' may not be read by this user. Change its permissions.")
    if state.st_size == 0:
        raise InputError(f"data file '{path}' is empty: it holds no document. Give a file with at least one document.")
    return found


def read_data_file(path: Path) -> bytes:
    """Return a file's content, decompressed where the file is gzipped (told by content, not by name).

    Raises:
        InputError: As `check_file`; the gzip stream is truncated or damaged; the content is empty or UTF-16.
    """
    found = check_file(path)
    try:
        content = found.read_bytes()
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"data file '{path}': the gzip stream is truncated or damaged ({error}). Copy it again."
        ) from (error)
    except OSError as error:
        raise InputError(f"data file '{path}' could not be read: {error}. Check the file and its disk.") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"data file '{path}' is UTF-16, only UTF-8 is read. Convert it: iconv -f UTF-16 -t UTF-8.")
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise InputError(f"data file '{path}' is empty: it holds no document. Give a file with at least one document.")
    return content


def parse_json(content: bytes) -> Any:
    """Return the value of one JSON text in UTF-8.

    Raises:
        JsonSyntaxError: It is not UTF-8, not JSON, nested too deeply, or an object in it gives a key twice (of which
            Python's parser would silently keep the last).
    """
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_object_without_repeats)
    except UnicodeDecodeError as error:
        raise JsonSyntaxError(
            f"not UTF-8: {_position(content, error.start)} has {content[error.start]:#04x}"
        ) from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if b"\n" in content else f"column {error.colno}"
        raise JsonSyntaxError(f"broken JSON: {error.msg.removesuffix(' at')} at {place}") from error
    except RecursionError as error:
        raise JsonSyntaxError("broken JSON: nested too deeply") from error
    except JsonSyntaxError:
        raise
    except ValueError as error:  # the one that is left: Python's limit on the digits of an integer
        raise JsonSyntaxError("broken JSON: a number has too many digits") from error


def _position(content: bytes, offset: int) -> str:
    before = content[:offset]
    line, column = before.count(b"\n") + 1, offset - before.rfind(b"\n")
    return f"line {line} byte {column}" if b"\n" in content else f"byte {column}"


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise JsonSyntaxError(f"an object gives the key {', '.join(map(repr, twice))} more than once")
    return whole
