"""How often a regression test errs on real students: `python -m pipelines.regression.flakiness SUITE [--json FILE]`.

Students of the same recipe with other seeds are compared, each with a baseline of its own seed: a verdict of
`regressed` is a false alarm. Then students that did not learn a share of the facts, which loses about as much accuracy:
any other verdict than `regressed` is a miss. What is measured so includes how much students differ by their seeds, of
which the bounds over documents know nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from evaluation.files import write_atomically
from evaluation.gate.checks import differences_of
from pipelines.records import Record
from pipelines.regression.example import Training, train_students
from pipelines.regression.pins import check_pins
from pipelines.regression.scoring import StudentScores, paired, score_students
from pipelines.regression.suite import RegressionSuite, SuiteContent, load_content, load_suite
from pipelines.regression.verdict import Compared, Outcome, find_verdict

if TYPE_CHECKING:
    from pipelines.regression.scoring import OpenStudent

RUNS = 40
"""Verdicts of each kind."""

LEFT_OUT = 0.11
"""Share of the facts that a planted regression does not learn: 10 points of accuracy, as some others are unknown."""

_AT_ONCE = 8
"""Students trained in one bank."""

_Scores = TypeVar("_Scores")
"""Of students, or of ways of adapting one."""


class Trial(Record):
    """One verdict."""

    seed: int
    """Of the candidate; the baseline has the next one."""
    planted: bool
    outcome: Outcome
    change: float
    """Measured change over all documents, in [-1, 1]."""
    failed: tuple[str, ...] = ()
    """Names of the checks that found a loss."""


class Flakiness(Record):
    """All verdicts."""

    suite: str
    suite_digest: str
    planted: str
    """What was done to the candidates that are worse on purpose, in words."""
    trials: tuple[Trial, ...]
    seconds: float

    def outcomes(self, *, planted: bool) -> dict[str, int]:
        """Return how often each outcome was found."""
        return dict(Counter(trial.outcome for trial in self.trials if trial.planted is planted))

    def mean_change(self, *, planted: bool) -> float:
        """Return the mean of the measured changes, in [-1, 1]."""
        changes = [trial.change for trial in self.trials if trial.planted is planted]
        return sum(changes) / len(changes)

    @property
    def false_alarms(self) -> int:
        """Unchanged students that were called regressed."""
        return self.outcomes(planted=False).get("regressed", 0)

    @property
    def misses(self) -> int:
        """Planted regressions that were not called regressed."""
        found = self.outcomes(planted=True)
        return sum(found.values()) - found.get("regressed", 0)


def measure(
    suite: RegressionSuite,
    content: SuiteContent,
    student: OpenStudent,
    *,
    runs: int = RUNS,
    left_out: float = LEFT_OUT,
    first_seed: int = 0,
) -> Flakiness:
    """Return the verdicts on students trained for the purpose.

    The baseline of seed s is the student of seed s + 1, for unchanged and for planted candidates alike.

    Args:
        suite: What is asked, and what counts as worse.
        content: Of the suite.
        student: The frozen base.
        runs: Verdicts of each kind, at least 1.
        left_out: Share of the facts that the planted ones do not learn, in (0, 1).
        first_seed: Of the first candidate.
    """
    started = time.perf_counter()
    seeds = range(first_seed, first_seed + runs)
    unchanged = _scores(suite, content, student, [Training(seed) for seed in (*seeds, first_seed + runs)])
    planted = _scores(suite, content, student, [Training(seed, left_out) for seed in seeds])
    worse = f"{left_out:.0%} of the facts not learned"
    return verdicts_on(suite, unchanged, planted, paired, worse=worse, first_seed=first_seed, started=started)


def verdicts_on(
    suite: RegressionSuite,
    unchanged: Sequence[_Scores],
    planted: Sequence[_Scores],
    pair: Callable[[_Scores, _Scores], Compared],
    *,
    worse: str,
    started: float,
    first_seed: int = 0,
) -> Flakiness:
    """Return the verdicts on candidates of N seeds, each compared with the unchanged one of the next seed.

    Args:
        suite: Says what counts as worse.
        unchanged: Scores of N + 1 seeds.
        planted: Scores of N seeds that are worse on purpose.
        pair: Puts a candidate's scores beside a baseline's.
        worse: What was done to these, in words.
        started: When it all began, by `time.perf_counter`.
        first_seed: Of the first candidate.
    """
    trials = [
        trial_of(suite, pair(candidates[i], unchanged[i + 1]), first_seed + i, planted=is_planted)
        for i in range(len(planted))
        for is_planted, candidates in ((False, unchanged), (True, planted))
    ]
    return Flakiness(
        suite=suite.name,
        suite_digest=suite.digest,
        planted=worse,
        trials=tuple(trials),
        seconds=time.perf_counter() - started,
    )


def trial_of(suite: RegressionSuite, compared: Compared, seed: int, *, planted: bool) -> Trial:
    """Return the verdict on paired scores.

    Args:
        suite: Says what counts as worse.
        compared: Of at least one document.
        seed: Of the candidate.
        planted: Whether it is worse on purpose.
    """
    found = find_verdict(compared, suite.groups, suite.limits)
    differences = differences_of(compared.documents)
    failed, change = tuple(c.name for c in found.checks if c.verdict == "fail"), sum(differences) / len(differences)
    return Trial(seed=seed, planted=planted, outcome=found.outcome, change=change, failed=failed)


def flakiness_table(found: Flakiness) -> str:
    """Return the figures as a Markdown table."""
    rows = [
        "| candidates | passed | regressed | undecided | mean change | from | to |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for planted, label in ((False, "unchanged"), (True, found.planted)):
        outcomes = found.outcomes(planted=planted)
        changes = [100 * trial.change for trial in found.trials if trial.planted is planted]
        counts = " | ".join(str(outcomes.get(outcome, 0)) for outcome in ("passed", "regressed", "undecided"))
        mean = 100 * found.mean_change(planted=planted)
        rows.append(f"| {label} | {counts} | {mean:+.1f} | {min(changes):+.1f} | {max(changes):+.1f} |")
    return "\n".join(rows)


def tell(found: Flakiness, file: Path | None) -> None:
    """Print the figures; every verdict is written to a file where there is one."""
    if file is not None:
        write_atomically(file, found.model_dump_json(indent=2) + "\n")
    runs = len(found.trials) // 2
    sys.stdout.write(
        f"{flakiness_table(found)}\n\n{found.false_alarms} false alarms and {found.misses} misses in {runs} each; "
        f"{found.seconds:.0f} s.\n"
    )


def _scores(
    suite: RegressionSuite, content: SuiteContent, student: OpenStudent, trainings: Sequence[Training]
) -> list[StudentScores]:
    scores: list[StudentScores] = []
    for start in range(0, len(trainings), _AT_ONCE):
        part = trainings[start : start + _AT_ONCE]
        adapters = train_students(suite, content, student, part)
        scores += score_students(suite, content, student, adapters, [f"seed {training.seed}" for training in part])
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.regression.flakiness", description=__doc__)
    parser.add_argument("suite", type=Path, help="YAML file of the suite.")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"Verdicts of each kind [{RUNS}].")
    parser.add_argument("--left-out", type=float, default=LEFT_OUT, help=f"Share of facts not learned [{LEFT_OUT}].")
    parser.add_argument("--seed", type=int, default=0, help="Of the first candidate [0].")
    parser.add_argument("--json", type=Path, help="Write every verdict to this file.")
    told = parser.parse_args(arguments)
    if told.runs < 1 or not 0.0 < told.left_out < 1.0:
        parser.error("--runs must be at least 1, and --left-out in (0, 1)")
    from pipelines.process import prepare_process

    prepare_process()
    from pipelines.regression.scoring import open_student

    suite = load_suite(told.suite)
    content, student = load_content(suite), open_student(suite)
    check_pins(suite, student.pins(content))
    found = measure(suite, content, student, runs=told.runs, left_out=told.left_out, first_seed=told.seed)
    tell(found, told.json)


if __name__ == "__main__":
    main()
