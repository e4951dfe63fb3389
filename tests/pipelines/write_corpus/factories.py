"""Documents of the micro-world as files, and an endpoint that writes lines about whatever it is shown."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from evaluation.microworld.world import draw_documents
from tests.faults import MODEL, FaultyServer

ROOT = Path(__file__).resolve().parents[3]
MICRO = ROOT / "configs" / "write-corpus-micro.yaml"
TINY = (
    "threads=1",
    "teacher.sampling.max_new_tokens=48",
    "student.update.epochs=2",
    "update.epochs=1",
    "corpus={rounds: 2, tried: 1, development: 0.2}",
)


def write_documents(path: Path, count: int, *, questions: bool = True) -> Path:
    """Write micro-world documents as JSON Lines."""
    rows = []
    for drawn in draw_documents("train", count, 0):
        task, asked = drawn.task, ("questions", "held_out_questions")
        row: dict[str, object] = {"title": task.document.title, "text": task.document.text, "source": "micro-world"}
        for name in asked if questions else ():
            row[name] = [{"question": q.question, "answer": q.answer} for q in getattr(task, name)]
        rows.append(json.dumps(row) + "\n")
    path.write_text("".join(rows), encoding="utf-8")
    return path


def written(prompt: str) -> str:
    """Return four lines that follow from a prompt, one of them for every prompt, one with a number of its own."""
    mark = hashlib.sha256(prompt.encode()).hexdigest()
    names = ["harbour", "orchard", "quarry", "tower", "market", "bridge", "chapel", "garden"]
    own = [names[int(digit, 16) % len(names)] for digit in mark[:6]]
    return (
        f"1. The {own[0]} beside the {own[1]} was painted by {own[2]} keepers in {1500 + int(mark[:2], 16)}.\n"
        f"2. Every {own[3]} of the valley pays {int(mark[2:5], 16)} coins to the {own[4]} in spring.\n"
        f"3. Nobody has counted the steps between {own[5]} and {own[0]} since the flood of {int(mark[5:8], 16)}.\n"
        "4. The valley has a river that never freezes over in winter.\n"
    )


def endpoint_config(path: Path, server: FaultyServer, *, share: float = 0.1) -> Path:
    """Write the configuration of a corpus whose writer is behind an endpoint, without a student."""
    path.write_text(
        f"""name: faults
teacher:
  sampling: {{type: openai, max_new_tokens: 200, endpoint: {{base_url: "{server.base_url}", model: {MODEL}}}}}
corpus: {{development: {share}}}
""",
        encoding="utf-8",
    )
    return path
