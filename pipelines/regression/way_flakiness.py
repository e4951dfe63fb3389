"""How often a regression test errs on ways of adapting: `python -m pipelines.regression.way_flakiness SUITE`.

The suite's teacher as it is writes with other seeds, and the student learns with other seeds: candidate and baseline
are the same way of adapting, and a verdict of `regressed` is a false alarm. Then the candidate's recipe learns with a
smaller step size, which loses accuracy: any other verdict is a miss.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.regression.flakiness import Flakiness, tell, verdicts_on
from pipelines.regression.subjects import parse_subject
from pipelines.regression.suite import RegressionSuite, SuiteContent, load_content, load_suite

if TYPE_CHECKING:
    from pipelines.progress import Reporter
    from pipelines.regression.scoring import OpenStudent
    from pipelines.regression.way_scores import WayScores

RUNS = 20
"""Verdicts of each kind."""

LEARNING_RATE = 2e-3
"""Of the planted candidates, in place of 5e-3: it takes 10 points of accuracy."""


def measure_ways(
    suite: RegressionSuite,
    work_dir: Path,
    reporter: Reporter,
    *,
    runs: int = RUNS,
    learning_rate: float = LEARNING_RATE,
) -> Flakiness:
    """Return the verdicts on the suite's own way of adapting, with other seeds and with another step size.

    The baseline of seed s is the way with seed s + 1, for unchanged and for planted candidates alike.

    Args:
        suite: Pinned, with a section `adaptation`.
        work_dir: For records.
        reporter: Told of what is done.
        runs: Verdicts of each kind, at least 1.
        learning_rate: Of the planted candidates.

    Raises:
        ConfigError: The suite says nothing of ways of adapting.
    """
    from pipelines.regression.pins import check_pins
    from pipelines.regression.scoring import open_student
    from pipelines.regression.way_scores import paired_ways

    started = time.perf_counter()
    content, student = load_content(suite), open_student(suite)
    check_pins(suite, student.pins(content))
    plain: list[tuple[int, Mapping[str, float]]] = [(seed, {}) for seed in range(runs + 1)]
    slow = [(seed, {"learning_rate": learning_rate}) for seed in range(runs)]
    unchanged, planted = (_scores(suite, content, student, work_dir, reporter, wanted) for wanted in (plain, slow))
    worse = f"with a step size of {learning_rate:g}"
    return verdicts_on(suite, unchanged, planted, partial(paired_ways, content), worse=worse, started=started)


def _scores(
    suite: RegressionSuite,
    content: SuiteContent,
    student: OpenStudent,
    work_dir: Path,
    reporter: Reporter,
    wanted: Sequence[tuple[int, Mapping[str, float]]],
) -> list[WayScores]:
    """Return the scores of the suite's own way of adapting for pairs of a seed and changes of its recipe."""
    from pipelines.regression.adapting import measure_way
    from pipelines.regression.subjects import Located
    from pipelines.regression.ways import way_of

    way = way_of(suite, parse_subject("teacher:base"))
    scores = []
    for seed, changes in wanted:
        update = way.run.student.update.model_copy(update=changes)
        learns = way.run.student.model_copy(update={"update": update})
        run = way.run.model_copy(update={"seed": seed, "student": learns})
        changed = way._replace(run=run)
        scores.append(measure_way(suite, content, student, changed, Located(None), work_dir, reporter))
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.regression.way_flakiness", description=__doc__)
    parser.add_argument("suite", type=Path, help="YAML file of the suite.")
    parser.add_argument("--work-dir", type=Path, default=Path(".preceptor"), help="Directory for records.")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"Verdicts of each kind [{RUNS}].")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help=f"Planted [{LEARNING_RATE}].")
    parser.add_argument("--json", type=Path, help="Write every verdict to this file.")
    told = parser.parse_args(arguments)
    if told.runs < 1 or not 0.0 < told.learning_rate <= 1.0:
        parser.error("--runs must be at least 1, and --learning-rate in (0, 1]")
    suite = load_suite(told.suite)
    from pipelines.process import prepare_process

    prepare_process(told.work_dir)
    from prefect import flow
    from rich.console import Console

    from pipelines.embedded import embedded_flow
    from pipelines.progress import Reporter
    from pipelines.regression.adapting import total_units
    from pipelines.regression.ways import way_of

    units = total_units(load_content(suite), way_of(suite, parse_subject("teacher:base")))
    name = "regression-flakiness"

    @flow(name=name, persist_result=False)
    def measured() -> Flakiness:
        with (
            embedded_flow(told.work_dir, name),
            Reporter(Console(stderr=True), (2 * told.runs + 1) * units) as reporter,
        ):
            return measure_ways(suite, told.work_dir, reporter, runs=told.runs, learning_rate=told.learning_rate)

    tell(measured(), told.json)


if __name__ == "__main__":
    main()
