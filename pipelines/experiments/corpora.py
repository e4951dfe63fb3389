"""What students learn from corpora, by writer and allocation, at equal tokens.

`python -m pipelines.experiments.corpora micro --teacher DIR` takes the directory of a teacher that `preceptor
train-teacher configs/demo.yaml` trained, and `real --teacher DIR --run FILE` one of configs/real-demo.yaml with the
run's result (`--json`). Corpora are written about documents that the teacher never saw. The same command resumes. It
prints a table in Markdown after each corpus, and in the end what `auto` adds to each other variant.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evaluation.common.storage import write_atomically
from evaluation.domains import load_split
from evaluation.microworld.world import MicroworldData, microworld_split
from evaluation.statistics import hierarchical_bootstrap_mean
from evaluation.tasks import KnowledgeTask
from pipelines.process import CONFIGS, flow_process
from pipelines.records import RunResult
from pipelines.reports.format import markdown_table, percent_interval, points_interval
from pipelines.settings import load
from pipelines.terminal import plain_errors
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.rounds import round_documents

if TYPE_CHECKING:
    from pipelines.write_corpus.study import StudyResult


_AUTO = "trained teacher, auto"


class Setup(NamedTuple):
    """An experiment on one pair of models."""

    documents: int
    development: int
    """Of these, for the development split."""
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


_LAYERS = "loss_on: answer, target_modules: [gate_proj, up_proj, down_proj], depth: [0.5, 1.0]"
SETUPS = {
    "micro": Setup(
        documents=110,
        development=10,
        config="write-corpus-micro.yaml",
        own="micro-implications",
        best="micro-self-qa",
        kinds=("micro-implications", "micro-rewrite", "micro-self-qa"),
        piece_tokens=60,
        # 113,777 lines on 110 documents were 11,120 different ones: without duplicates there are no 30 budgets.
        times=10,
        overrides=("corpus={rounds: 4, tried: 8}", "teacher.sampling.batch_size=256", "update.epochs=4"),
    ),
    "real": Setup(
        documents=28,
        development=4,
        config="write-corpus.yaml",
        own="self-qa",
        best="self-qa",
        kinds=("self-qa", "implications", "rewrite", "faq"),
        piece_tokens=50,
        times=10,
        overrides=(
            "teacher.chat=false",
            "teacher.sampling={type: transformers, temperature: 1.0, max_new_tokens: 160, batch_size: 64}",
            "teacher.policy={rank: 16, alpha: 32}",
            "student={model: smollm2-135m, format: plain, bank_slots: 8}",
            f"student.update={{rank: 16, alpha: 32, learning_rate: 2.0e-3, epochs: 8, batch_size: 64, {_LAYERS}}}",
            f"update={{rank: 32, alpha: 64, learning_rate: 1.0e-3, epochs: 4, batch_size: 32, {_LAYERS}}}",
            "corpus={rounds: 2, tried: 4}",
        ),
    ),
}


def micro_documents(count: int, seed: int) -> Sequence[KnowledgeTask]:
    """Return documents about entities that no training has."""
    return microworld_split(MicroworldData(test_documents=count, split_seed=seed)).test


def unseen_documents(config: TrainTeacherConfig, warm: Sequence[str], count: int) -> Sequence[KnowledgeTask]:
    """Return the documents of a run that neither `count` rounds nor a warm start on the ids `warm` used."""
    split = load_split(config.data)
    rounds = (round_documents(config, split.train, number, warm) for number in range(count))
    taken = {task.id for tasks in rounds for task in tasks}.union(warm)
    return [*split.test, *split.development, *(task for task in split.train if task.id not in taken)]


def write_documents(path: Path, tasks: Sequence[KnowledgeTask]) -> Path:
    """Write documents with their questions as JSON Lines."""
    rows = []
    for task in tasks:
        sets = {"questions": task.questions, "held_out_questions": task.held_out_questions}
        asked = {name: [{"question": q.question, "answer": q.answer} for q in mine] for name, mine in sets.items()}
        row = {"title": task.document.title, "text": task.document.text, "source": task.document.source, **asked}
        rows.append(json.dumps(row) + "\n")
    return write_atomically(path, "".join(rows))


def run(setup: Setup, tasks: Sequence[KnowledgeTask], place: Path, teacher: str, seed: int) -> dict[str, StudyResult]:
    """Return the studies of all variants of a seed."""
    from pipelines.write_corpus.flow import write_corpus
    from pipelines.write_corpus.study import study

    source, found = write_documents(place / f"documents-{seed}.jsonl", tasks), {}
    held = f"corpus.development={setup.development / setup.documents}"
    overrides = [f"seed={seed}", "threads=1", *setup.overrides, held]
    settings: dict[str, Any] = {"config_path": str(CONFIGS / setup.config), "work_dir": str(place)}
    for label, (trained, kinds) in setup.variants.items():
        out = place / f"{label.replace(', ', '-').replace(' ', '-')}-{seed}"
        tokens = setup.times * setup.piece_tokens * (setup.documents - setup.development)
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
    parser.add_argument("--teacher", required=True, help="directory of a trained teacher")
    parser.add_argument("--run", type=Path, help="JSON file with the result of its run, for `real`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work-dir", type=Path, default=Path(".preceptor/corpora"))
    given = parser.parse_args()
    setup, found = SETUPS[given.setup], []
    with flow_process(given.work_dir):
        for seed in given.seeds:
            if given.run is None:
                tasks = micro_documents(setup.documents, seed)
            else:
                result = RunResult.model_validate_json(given.run.read_bytes())
                warm = () if result.warm_start is None else result.warm_start.document_ids
                config = load(CONFIGS / "real-demo.yaml", TrainTeacherConfig)
                tasks = unseen_documents(config, warm, len(result.rounds))
            found.append(run(setup, tasks[: setup.documents], given.work_dir, given.teacher, seed))
    sys.stdout.write(differences(found) + "\n")


if __name__ == "__main__":
    main()
