"""What students learn from corpora, by writer and allocation, at equal tokens.

`python -m pipelines.experiments.corpora micro --teacher DIR` takes the directory of a teacher that `preceptor
train-teacher configs/demo.yaml` trained, and `real --teacher DIR` one of configs/evidence-real-plan.yaml, with the
run's seed. Corpora are written about test documents, which no teacher saw. The same command resumes. It prints a table
in Markdown after each corpus, and in the end what `auto` adds to each other variant.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from evaluation.common.storage import write_atomically
from evaluation.domains import DataConfig, load_split
from evaluation.statistics import hierarchical_bootstrap_mean
from evaluation.tasks import DataSplit, KnowledgeTask
from pipelines.process import CONFIGS, flow_process
from pipelines.reports.format import markdown_table, percent_interval, points_interval
from pipelines.terminal import plain_errors

if TYPE_CHECKING:
    from pipelines.write_corpus.study import StudyResult


_AUTO = "trained teacher, auto"


class Setup(NamedTuple):
    """An experiment on one pair of models."""

    data: dict[str, Any]
    """Section of the teacher's training; its test documents are written about."""
    documents: int
    """Of these, those for development included."""
    config: str
    own: str
    """Kind that the teacher was trained on."""
    best: str
    """Kind that teaches most when the untrained model writes it."""
    kinds: tuple[str, ...]
    piece_tokens: int
    """Tokens of the budget 1x, a self-edit's, for every corpus alike."""
    times: int
    """Size of a corpus, in budgets 1x."""
    overrides: tuple[str, ...]
    """Of the configuration."""

    @property
    def variants(self) -> dict[str, tuple[bool, str]]:
        """By label: whether the teacher is the trained one, and the kinds."""
        even = ",".join(self.kinds)
        return {
            _AUTO: (True, f"auto,{even}"),
            "trained teacher, even": (True, even),
            "trained teacher, its own kind": (True, self.own),
            "untrained teacher, even": (False, even),
            "untrained teacher, best fixed kind": (False, self.best),
        }


_SPLIT = {"development_documents": 6, "test_documents": 48}
"""As in configs/evidence-real-plan.yaml."""
_LAYERS = "loss_on: answer, target_modules: [gate_proj, up_proj, down_proj], depth: [0.5, 1.0]"
_MICRO, _REAL = ("micro-implications", "micro-rewrite", "micro-self-qa"), ("self-qa", "implications", "rewrite", "faq")
SETUPS = {
    "micro": Setup(
        {"type": "microworld", "test_documents": 112},
        112,
        *("write-corpus-micro.yaml", "micro-implications", "micro-self-qa", _MICRO, 60, 30),
        ("corpus={rounds: 4, tried: 8}",),
    ),
    "real": Setup(
        {"type": "jsonl", "path": "configs/examples/real/passages.jsonl", **_SPLIT},
        30,
        *("write-corpus.yaml", "self-qa", "self-qa", _REAL, 90, 10),
        (
            "teacher.chat=false",
            "teacher.sampling={type: transformers, temperature: 1.0, max_new_tokens: 160, batch_size: 64}",
            "teacher.policy={rank: 16, alpha: 32}",
            "student={model: smollm2-135m, format: plain, bank_slots: 8}",
            f"student.update={{rank: 16, alpha: 32, learning_rate: 2.0e-3, epochs: 8, batch_size: 64, {_LAYERS}}}",
            f"update={{rank: 32, alpha: 64, learning_rate: 1.0e-3, epochs: 4, batch_size: 32, {_LAYERS}}}",
            "corpus={rounds: 2, tried: 6, development: 0.2}",
        ),
    ),
}


def write_documents(path: Path, tasks: Sequence[KnowledgeTask]) -> Path:
    """Write documents with their questions as JSON Lines."""
    rows = []
    for task in tasks:
        sets = {"questions": task.questions, "held_out_questions": task.held_out_questions}
        asked = {name: [{"question": q.question, "answer": q.answer} for q in mine] for name, mine in sets.items()}
        row = {"title": task.document.title, "text": task.document.text, "source": task.document.source, **asked}
        rows.append(json.dumps(row) + "\n")
    return write_atomically(path, "".join(rows))


def run(setup: Setup, place: Path, teacher: str, seed: int) -> dict[str, StudyResult]:
    """Return the studies of all variants of a seed, each on documents of its own."""
    from pipelines.write_corpus.flow import write_corpus
    from pipelines.write_corpus.study import study

    data: DataSplit = TypeAdapter(DataConfig).validate_python({**setup.data, "split_seed": seed})
    tasks = load_split(data).test[: setup.documents]
    source, found = write_documents(place / f"documents-{seed}.jsonl", tasks), {}
    overrides = [f"seed={seed}", "threads=1", *setup.overrides]
    settings: dict[str, Any] = {"config_path": str(CONFIGS / setup.config), "work_dir": str(place)}
    for label, (trained, kinds) in setup.variants.items():
        out = place / f"{label.replace(', ', '-').replace(' ', '-')}-{seed}"
        tokens = setup.times * setup.piece_tokens * len(tasks)
        if not (out / "corpus.json").is_file():
            write_corpus(
                [str(source)], str(out), tokens, kinds, teacher if trained else "", overrides=overrides, **settings
            )
        found[label] = study(str(out), overrides=overrides, piece_tokens=setup.piece_tokens, **settings)
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


def differences(seeds: Sequence[dict[str, StudyResult]]) -> str:
    """Return what `auto` adds to each other variant by budget, paired by document, over seeds and documents."""
    names = [budget.name for budget in seeds[0][_AUTO].budgets][1:]
    rows = []
    for label in [*seeds[0]][1:]:
        cells = []
        for place in range(1, len(names) + 1):
            pairs = [(found[_AUTO].budgets[place].point, found[label].budgets[place].point) for found in seeds]
            groups = [
                [a.accuracy[name] - b.accuracy[name] for name in a.accuracy if name in b.accuracy] for a, b in pairs
            ]
            interval = hierarchical_bootstrap_mean(groups, np.random.default_rng(0), bounds=(-1.0, 1.0))
            cells.append(points_interval(interval))
        rows.append([f"auto - {label}", *cells])
    return markdown_table([f"points, {len(seeds)} seeds", *names], rows)


@plain_errors()
def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setup", choices=SETUPS)
    parser.add_argument("--teacher", required=True, nargs="+", help="directory of a trained teacher, one for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work-dir", type=Path, default=Path(".preceptor/corpora"))
    given = parser.parse_args()
    teachers = given.teacher * len(given.seeds) if len(given.teacher) == 1 else given.teacher
    with flow_process(given.work_dir):
        pairs = zip(teachers, given.seeds, strict=True)
        found = [run(SETUPS[given.setup], given.work_dir, teacher, seed) for teacher, seed in pairs]
    sys.stdout.write(differences(found) + "\n")


if __name__ == "__main__":
    main()
