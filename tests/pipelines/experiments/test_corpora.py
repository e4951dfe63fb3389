"""Which documents an experiment on corpora is about, and what it prints."""

from __future__ import annotations

from typing import Any

from evaluation.domains import load_split
from pipelines.experiments.corpora import SETUPS, differences, micro_documents, unseen_documents
from pipelines.settings import load
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.rounds import round_documents
from pipelines.write_corpus.study import Budget, StudyPoint, StudyResult
from tests.flows.settings import CONFIGS


def test_documents_are_those_that_no_training_used() -> None:
    config = load(CONFIGS / "real-demo.yaml", TrainTeacherConfig)
    train = load_split(config.data).train
    assert config.warm_start is not None
    warm = tuple(task.id for task in train[-config.warm_start.documents :])
    rounds = config.loop.rounds
    found = {task.id for task in unseen_documents(config, warm, rounds)}
    used = {task.id for number in range(rounds) for task in round_documents(config, train, number, warm)}
    assert found.isdisjoint(used.union(warm))
    assert len(found) == 140 - len(used.union(warm)) >= SETUPS["real"].documents
    assert len(micro_documents(SETUPS["micro"].documents, 1)) == SETUPS["micro"].documents


def test_differences_are_paired_by_document() -> None:
    def studied(*accuracy: float) -> StudyResult:
        names = ("a", "b", "c")
        points = [dict(zip(names, values, strict=True)) for values in ((0.0,) * 3, accuracy)]
        budgets = tuple(
            Budget(name=f"{times}x", tokens=times, rows=times, point=StudyPoint(accuracy=point))
            for times, point in enumerate(points)
        )
        figures: dict[str, Any] = {"accuracy": {}, "gains": {}, "tests": {}, "budgets": budgets, "seed": 0}
        counts = dict.fromkeys(("documents", "questions", "piece_tokens"), 1)
        return StudyResult(corpus="c", corpus_digest="d", student="s", **counts, **figures)

    label, other = [*SETUPS["micro"].variants][:2]
    found = {label: studied(0.5, 0.7, 0.9), other: studied(0.4, 0.6, 0.8)}
    table = differences([found, found]).splitlines()
    assert table[-1].startswith(f"| auto - {other} | +10.0 ")
