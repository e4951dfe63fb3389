"""Public collections of files, read whole: DOCUMENT_COLLECTIONS is a directory with clones of them (docs/inbox.md)."""

from __future__ import annotations

import html
import multiprocessing
import os
import re
import unicodedata
from collections import Counter, defaultdict
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pipelines.inbox.readers import READERS, SUFFIXES
from pipelines.inbox.readers.text import UnreadableError

LEAST = {"pdf": 0.97, "docx": 0.94, "pptx": 0.8, "xlsx": 0.8, "csv": 0.99, "epub": 0.99}
"""Share of the words of the collections' own transcripts that each format must keep."""
LIMIT_S = 30.0


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def transcript(file: Path) -> str:
    """Return the text that docling or markitdown keep as right for a file, without Markdown; empty if there is none."""
    kept = file.parent.parent / "groundtruth", file.parent / "expected_outputs"
    names = [folder / name for folder in kept for name in (f"{file.name}.md", f"{file.stem}.md")]
    found = next(
        (name for name in names if name.exists() and (file.suffix == ".pdf" or "groundtruth" in name.parts)), None
    )
    text = found.read_text(encoding="utf-8") if found else ""
    text = re.sub(
        r"<!--.*?-->|</?[a-zA-Z][^>\n]*>|\\", "", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text), flags=re.DOTALL
    )
    return html.unescape(html.unescape(text))


def read(file: Path, results: Connection) -> None:
    try:
        blocks = READERS[SUFFIXES[file.suffix]](file.read_bytes()).blocks
        results.send("\n".join(block.text for block in blocks))
    except UnreadableError:
        results.send("")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_public_files_are_read_without_crash_or_hang_and_keep_their_words() -> None:
    place = os.environ.get("DOCUMENT_COLLECTIONS")
    if not place:
        pytest.skip("DOCUMENT_COLLECTIONS names no directory with clones of the collections")
    broken: list[str] = []
    kept: defaultdict[str, Counter[str]] = defaultdict(Counter)
    formats = set(SUFFIXES) - {".json", ".jsonl", ".ndjson", ".md", ".markdown", ".txt", ".text"}
    for file in sorted(path for path in Path(place).rglob("*") if path.is_file() and path.suffix in formats):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.Process(target=read, args=(file, sender))
        child.start()
        sender.close()
        try:
            text = receiver.recv() if receiver.poll(LIMIT_S) else None
        except EOFError:
            text = None
        child.kill()
        child.join()
        if text is None:
            broken.append(str(file))
        right, format_ = words(transcript(file)), SUFFIXES[file.suffix]
        common = (right & words(text or "")).total()
        kept[format_].update(files=1, unread=not text, right=right.total(), kept=common)
    for format_, counts in kept.items():
        print(f"{format_}: {dict(counts)}, {counts['kept'] / max(1, counts['right']):.1%} of the words")
    assert broken == []
    shares = {name: counts["kept"] / counts["right"] for name, counts in kept.items() if counts["right"]}
    assert {name: share for name, share in shares.items() if share < LEAST.get(name, 0.0)} == {}
