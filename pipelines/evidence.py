"""One run over several seeds, and a table of what they show: `python -m pipelines.evidence CONFIG --seeds 0 1 2`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluation.statistics import SMALL_GROUPS, hierarchical_bootstrap_mean, known_mean
from pipelines.records import Interval, RunResult

VARIANTS = ("base", "raw_passage", "fixed_kind", "untrained_teacher", "trained_teacher")

RESAMPLES = 10_000
"""Of the intervals over seeds and documents."""


class _Gain(NamedTuple):
    """A difference of two variants that has a column."""

    heading: str
    left: str
    right: str
    key: str
    """In `RunResult.gains`."""


_GAINS = (
    _Gain("trained − untrained", "trained_teacher", "untrained_teacher", "trained_minus_untrained"),
    _Gain("trained − best fixed kind", "trained_teacher", "fixed_kind", "trained_minus_fixed_kind"),
)


def run_seed(config: Path, seed: int, work_dir: Path, overrides: Sequence[str] = ()) -> RunResult:
    """Return the result of one seed; a process of its own, so that a killed one resumes and memory is given back.

    Args:
        config: YAML file of the run.
        seed: Of everything random, the choice of documents included.
        work_dir: Gets the run and its result.
        overrides: Settings such as `loop.rounds=3`.
    """
    result = work_dir / f"seed-{seed}.json"
    command = [sys.executable, "-m", "pipelines.cli", "train-teacher", str(config), "--set", f"seed={seed}"]
    # The documents of each seed are others, too: a gain must not hang on one draw of them.
    command += ["--set", f"data.split_seed={seed}"]
    command += [word for override in overrides for word in ("--set", override)]
    command += ["--work-dir", str(work_dir), "--json", str(result)]
    subprocess.run(command, check=True)
    return RunResult.model_validate_json(result.read_text(encoding="utf-8"))


def markdown_table(results: Mapping[int, RunResult], generator: np.random.Generator) -> str:
    """Return accuracies in per cent and gains in points with their 95 % intervals, a row a seed, and one over all.

    Intervals of a seed are over its documents; those of the last row are over seeds and documents
    (`hierarchical_bootstrap_mean`). Variants and gains that some seed lacks have no column.

    Args:
        results: By seed, at least one.
        generator: Of the resamples behind the last row.
    """
    shown = [name for name in VARIANTS if all(name in result.variants for result in results.values())]
    gains = [gain for gain in _GAINS if all(gain.key in result.gains for result in results.values())]
    heads = ["seed", *(name.replace("_", " ") for name in shown), *(gain.heading for gain in gains)]
    rows = [heads, ["---"] * len(heads)]
    for seed, result in results.items():
        cells = [_cell(result.variants[name]) for name in shown]
        rows.append([str(seed), *cells, *(_cell(result.gains[gain.key], signed=True) for gain in gains)])
    columns = [_shared_accuracies(result) for result in results.values()]
    last = [
        _cell(_over_all([[scores[name] for scores in seed] for seed in columns], generator, low=0.0)) for name in shown
    ]
    last += [
        _cell(
            _over_all([[s[gain.left] - s[gain.right] for s in seed] for seed in columns], generator, low=-1.0),
            signed=True,
        )
        for gain in gains
    ]
    rows.append(["all", *last])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def edit_lengths(results: Mapping[int, RunResult]) -> str:
    """Return a sentence on the mean tokens of each variant's self-edits over the seeds; empty where none is known."""
    means = {name: known_mean(result.edit_tokens.get(name) for result in results.values()) for name in VARIANTS}
    told = [f"{name.replace('_', ' ')} {mean:.0f}" for name, mean in means.items() if mean is not None]
    return f"Mean tokens of a self-edit: {', '.join(told)}." if told else ""


def few_seeds(seeds: int) -> str:
    """Return a sentence on how far to trust intervals over this many seeds; empty where there are enough."""
    if seeds >= SMALL_GROUPS:
        return ""
    if seeds == 1:
        return "With one seed the last row tells nothing of how another seed may turn out."
    return (
        f"Intervals over {seeds} seeds are too narrow, because so few show little of how seeds differ: 95 % intervals "
        "over 3 seeds held the true mean in 79 to 93 % of simulations."
    )


def _shared_accuracies(result: RunResult) -> list[dict[str, float]]:
    """Return the accuracy by variant of each document on which every compared variant has a score."""
    compared = {name: result.document_accuracy[name] for name in result.variants}
    shared = sorted(set.intersection(*(set(scores) for scores in compared.values())))
    return [{name: scores[document] for name, scores in compared.items()} for document in shared]


def _over_all(groups: list[list[float]], generator: np.random.Generator, *, low: float) -> Interval:
    """Return the mean over seeds and documents of values in [low, 1] with its 95 % interval."""
    found = hierarchical_bootstrap_mean(groups, generator, resamples=RESAMPLES, bounds=(low, 1.0))
    return Interval.of(found)


def _cell(interval: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    mean, low, high = (f"{round(100 * end, 1) + 0.0:{sign}.1f}" for end in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def main() -> None:
    """Run the seeds one after another and print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work-dir", type=Path, default=Path(".preceptor/evidence"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="as of train-teacher; repeatable")
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    results = {
        seed: run_seed(arguments.config, seed, arguments.work_dir, arguments.overrides) for seed in arguments.seeds
    }
    documents = {result.documents for result in results.values()}
    minutes = [sum(result.seconds.values()) / 60 for result in results.values()]
    told = " --set ".join([str(arguments.config), *arguments.overrides])
    title = (
        f"{datetime.now(UTC):%Y-%m-%d}, {told}, {sorted(documents)} test documents a seed, "
        f"{min(minutes):.1f} to {max(minutes):.1f} minutes each; accuracy in %, 95 % intervals over "
        "documents, in the last row over seeds and documents"
    )
    table = markdown_table(results, np.random.default_rng(0))
    text = "\n\n".join(part for part in (title, table, few_seeds(len(results)), edit_lengths(results)) if part) + "\n"
    (arguments.work_dir / "evidence.md").write_text(text, encoding="utf-8")
    sys.stdout.write(f"\n{text}\nsaved {arguments.work_dir / 'evidence.md'}\n")


if __name__ == "__main__":
    main()
