"""What students learn from corpora of the micro-world, by writer and allocation, at equal tokens.

`python -m pipelines.experiments.corpora --teacher teachers/STATE` with the directory of a teacher that
`preceptor train-teacher configs/demo.yaml` trained; the same command resumes. It prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.common.storage import write_atomically
from evaluation.microworld.world import MicroworldData, microworld_split
from pipelines.process import CONFIGS, flow_process
from pipelines.reports.format import markdown_table, percent_interval
from pipelines.terminal import plain_errors

if TYPE_CHECKING:
    from pipelines.write_corpus.study import StudyResult

PIECE_TOKENS = 60
"""Tokens of the budget 1x, a self-edit's, for every corpus alike."""
_EVEN = "micro-implications,micro-rewrite,micro-self-qa"
VARIANTS: dict[str, tuple[bool, str]] = {
    "trained teacher, its own kind": (True, "micro-implications"),
    "trained teacher, auto": (True, "auto"),
    "trained teacher, even": (True, _EVEN),
    "untrained teacher, its own kind": (False, "micro-implications"),
    "untrained teacher, even": (False, _EVEN),
    "untrained teacher, best fixed kind": (False, "micro-self-qa"),
}
"""By label: whether the teacher is the trained one, and the kinds."""


def write_documents(path: Path, count: int) -> Path:
    """Write micro-world documents with their questions as JSON Lines."""
    rows = []
    for task in microworld_split(MicroworldData(train_documents=count)).train:
        sets = {"questions": task.questions, "held_out_questions": task.held_out_questions}
        asked = {name: [{"question": q.question, "answer": q.answer} for q in mine] for name, mine in sets.items()}
        row = {"title": task.document.title, "text": task.document.text, "source": task.document.source, **asked}
        rows.append(json.dumps(row) + "\n")
    return write_atomically(path, "".join(rows))


def run(place: Path, teacher: str, documents: int, times: int, seed: int) -> dict[str, StudyResult]:
    """Return the studies of all variants, each of a corpus of `times` pieces a document."""
    from pipelines.write_corpus.flow import write_corpus
    from pipelines.write_corpus.study import study

    source, found = write_documents(place / "documents.jsonl", documents), {}
    for label, (trained, kinds) in VARIANTS.items():
        out = place / f"{label.replace(', ', '-').replace(' ', '-')}-{seed}"
        settings: dict[str, Any] = {"config_path": str(CONFIGS / "write-corpus-micro.yaml"), "work_dir": str(place)}
        overrides = [f"seed={seed}", "threads=1", "corpus={rounds: 4, tried: 8}"]
        tokens = times * PIECE_TOKENS * (documents - round(documents / 10))
        if not (out / "corpus.json").is_file():
            writer = teacher if trained else ""
            write_corpus([str(source)], str(out), tokens, kinds, writer, overrides=overrides, **settings)
        found[label] = study(str(out), overrides=overrides, piece_tokens=PIECE_TOKENS, **settings)
        sys.stdout.write(table(found) + "\n")
        sys.stdout.flush()
    return found


def table(found: dict[str, StudyResult]) -> str:
    """Return accuracy with intervals by variant and budget."""
    names = [budget.name for budget in next(iter(found.values())).budgets]
    rows = [
        [label, *(f"{percent_interval(r.accuracy.get(b.name))} ({b.tokens:,})" for b in r.budgets)]
        for label, r in found.items()
    ]
    return markdown_table(["accuracy in % (tokens)", *names], rows)


@plain_errors()
def main() -> None:
    """Run the experiment of one seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="directory of a trained micro-teacher")
    parser.add_argument("--documents", type=int, default=112, help="a tenth of them for development")
    parser.add_argument("--times", type=int, default=30, help="pieces a document")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-dir", type=Path, default=Path(".preceptor/corpora"))
    given = parser.parse_args()
    with flow_process(given.work_dir):
        run(given.work_dir, given.teacher, given.documents, given.times, given.seed)


if __name__ == "__main__":
    main()
