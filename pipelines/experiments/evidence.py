"""Run a grid and write its document: `python -m pipelines.experiments.evidence configs/evidence-plan.yaml`.

The document is called as the plan: `evidence-plan.yaml` gives docs/evidence.md, `evidence-real-plan.yaml`
docs/evidence-real.md.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import platform
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluation.common.errors import ConfigError
from evaluation.common.storage import write_atomically
from evaluation.statistics import (
    Interval,
    RandomEffects,
    adjusted,
    hierarchical_bootstrap_mean,
    kept_share,
    known_mean,
    random_effects,
    sign_flip_test,
)
from pipelines.experiments.grid import REFERENCE, SEEDS, GridPlan, PlannedRun, planned_runs, read_result, run_all
from pipelines.records import RunResult
from pipelines.reports.format import UNKNOWN, markdown_table, p_value, percent, percent_interval, points_interval
from pipelines.reports.plots import GREY, INK, draw_interval, new_figure, save_figure
from pipelines.settings import load
from pipelines.terminal import plain_errors
from pipelines.train_teacher.config import TrainTeacherConfig

OPEN, CLOSE = "<!-- notes -->", "<!-- /notes -->"
"""Text between them is preserved when the document is rewritten."""
TRAINED, UNTRAINED, GAIN = "trained_teacher", "untrained_teacher", "trained_minus_untrained"
_EDIT_NOTES = {
    "tokens": "tokens",
    "parsed": "valid, %",
    "lines": "lines",
    "coverage": "facts covered, %",
    "answers": "answers held, %",
    "leaked_rewards": "reward questions held, %",
    "leaked_comparison": "test questions held, %",
    "distinct_1": "distinct words",
    "distinct_2": "distinct word pairs",
}

Results = Mapping[int, RunResult]
"""By seed."""
Scores = Mapping[str, Mapping[str, float]]
"""By variant and document id."""


class Evidence(NamedTuple):
    """Content of the document."""

    config: TrainTeacherConfig
    """Of the first seed."""
    seeds: Results
    """At least one."""
    reference: Results
    """Runs with the common settings of the arms alone."""
    arms: dict[str, dict[str, dict[int, RunResult]]]
    """By heading, name and seed; none without the reference."""
    missing: Sequence[str]
    """Runs without a result."""
    days: tuple[str, str]
    """Of the first and the last result."""
    command: str

    def labels(self, found: Iterable[Iterable[str]]) -> dict[str, str]:
        """Return variants -> labels, in the order of the configuration."""
        names = set(itertools.chain.from_iterable(found))
        known = {variant.name: variant.label for variant in self.config.comparison.variants if variant.name in names}
        return known | {name: name.replace("_", " ") for name in sorted(names - set(known))}


def shared(scores: Scores, *names: str) -> list[str]:
    """Return the sorted ids of the documents that all named variants have a score on."""
    sets = [set(scores.get(name, {})) for name in names]
    return sorted(set.intersection(*sets)) if sets else []


def compared(scores: Scores) -> dict[str, dict[str, float]]:
    """Return the scores on the documents common to all variants with scores."""
    names = [name for name, values in scores.items() if values]
    documents = shared(scores, *names)
    return {name: {document: scores[name][document] for document in documents} for name in names}


def paired(scores: Scores, left: str, right: str) -> list[float]:
    """Return left - right by document."""
    return [scores[left][document] - scores[right][document] for document in shared(scores, left, right)]


def pooled(groups: Sequence[Iterable[float]], low: float = -1.0) -> Interval | None:
    """Return the mean over seeds and documents of values in [low, max(1, -low)]; None if a seed has none."""
    values = [list(group) for group in groups]
    if not values or not all(values):
        return None
    generator = np.random.default_rng(0)  # per interval, so that a new table changes no other figure
    return hierarchical_bootstrap_mean(values, generator, bounds=(low, max(1.0, -low)))


def as_effects(groups: Sequence[Sequence[float]]) -> RandomEffects | None:
    """Return the mean with seeds as random effects; None for one seed, or without variance in all seeds."""
    if len(groups) < 2 or any(len(values) < 2 for values in groups):
        return None
    errors = [float(np.std(values, ddof=1)) / math.sqrt(len(values)) for values in groups]
    return random_effects([float(np.mean(values)) for values in groups], errors)


def accuracy(results: Results, name: str) -> Interval | None:
    """Return a variant's accuracy in [0, 1] over seeds and documents; None if a seed lacks it."""
    return pooled([compared(r.document_accuracy).get(name, {}).values() for r in results.values()], low=0.0)


def differences(results: Results, key: str = GAIN) -> list[list[float]]:
    """Return the accuracy differences of a gain such as `trained_minus_untrained`, by seed and document."""
    groups = []
    for result in results.values():
        scores = compared(result.document_accuracy)
        left, right = (side if side in scores else f"{side}_teacher" for side in key.split("_minus_"))
        groups.append(paired(scores, left, right))
    return groups


def kept(results: Results) -> Interval | None:
    """Return the share of `GAIN` kept on the transfer student; None if a seed has none."""
    groups = []
    for result in results.values():
        there, here = {} if result.transfer is None else result.transfer.document_accuracy, result.document_accuracy
        both = sorted(set(shared(there, TRAINED, UNTRAINED)) & set(shared(here, TRAINED, UNTRAINED)))
        groups.append([[scores[TRAINED][d] - scores[UNTRAINED][d] for d in both] for scores in (there, here)])
    if not groups or not all(there for there, _ in groups):
        return None
    return kept_share([(there, here) for there, here in groups], np.random.default_rng(0))


def _plain(value: float | None, digits: int = 0) -> str:
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def _reading(found: Interval | None) -> str:
    return UNKNOWN if found is None else "above 0" if found.low > 0 else "below 0" if found.high < 0 else "within noise"


def variants_table(evidence: Evidence) -> str:
    """Return accuracies by variant and seed, and mean self-edit lengths in tokens."""
    seeds, rows = evidence.seeds, []
    for name, label in evidence.labels(result.variants for result in seeds.values()).items():
        found = [*(result.variants.get(name) for result in seeds.values()), accuracy(seeds, name)]
        tokens = known_mean(result.edit_tokens.get(name) for result in seeds.values())
        rows.append([label, *map(percent_interval, found), _plain(tokens)])
    return markdown_table(["accuracy, %", *(f"seed {seed}" for seed in seeds), "all seeds", "tokens"], rows)


def gains_table(results: Results) -> str:
    """Return the differences over all seeds with two interval methods."""
    rows = []
    for key in dict.fromkeys(key for result in results.values() for key in result.gains):
        groups = differences(results, key)
        found, effects = pooled(groups), as_effects(groups)
        between = percent(None if effects is None else effects.between_sd)
        label = key.replace("_minus_", " − ").replace("_", " ")
        rows.append([label, points_interval(found), _reading(found), points_interval(effects), between])
    return markdown_table(["difference, points", "bootstrap", "reading", "random effects", "SD between seeds"], rows)


def means_table(evidence: Evidence, field: str, heads: Mapping[str, str]) -> str:
    """Return means over seeds of a field of results, by variant and key; empty if no result has any."""
    notes: list[Mapping[str, Mapping[str, float]]] = [getattr(result, field) for result in evidence.seeds.values()]
    shown = [key for key in heads if any(key in found for by_key in notes for found in by_key.values())]
    rows = []
    for name, label in evidence.labels(notes).items():
        means = {key: known_mean(found.get(name, {}).get(key) for found in notes) for key in shown}
        cells = [percent(mean) if "%" in heads[key] else _plain(mean, 2) for key, mean in means.items()]
        rows.append([label, *cells])
    return markdown_table(["", *(heads[key] for key in shown)], rows) if shown else ""


def retention_table(evidence: Evidence) -> str:
    """Return forgetting on the retention probes by variant, and its difference between the teachers."""
    results, rows = evidence.seeds, []
    for name, label in evidence.labels(result.forgetting for result in results.values()).items():
        lost = pooled([result.document_forgetting.get(name, {}).values() for result in results.values()])
        rows.append([label, *map(points_interval, [*(r.forgetting.get(name) for r in results.values()), lost])])
    groups = [paired(result.document_forgetting, TRAINED, UNTRAINED) for result in results.values()]
    found = [pooled(some, low=-2.0) for some in (*([group] for group in groups), groups)]
    rows.append(["trained − untrained", *map(points_interval, found)])
    heads = ["forgetting, points", *(f"seed {seed}" for seed in results), "all seeds"]
    return markdown_table(heads, rows) if rows[1:] else ""


def unknown_table(evidence: Evidence) -> str:
    """Return accuracies on what the base does not know and gold probabilities per token; empty if no seed has them."""
    results, rows = evidence.seeds, []
    asked = [result.unknown for result in results.values() if result.unknown is not None]
    for name, label in evidence.labels(found.variants for found in asked).items():
        unknown = pooled([compared(r.document_unknown).get(name, {}).values() for r in results.values()], low=0.0)
        gold = known_mean(r.token_probability[name].mean for r in results.values() if name in r.token_probability)
        rows.append([label, percent_interval(accuracy(results, name)), percent_interval(unknown), percent(gold)])
    counts = f"{sum(found.unknown for found in asked):,} of {sum(found.questions for found in asked):,} questions"
    heads = [
        "",
        "all questions, %",
        f"{counts} that the base fails in all phrasings, %",
        "gold probability per token, %",
    ]
    return markdown_table(heads, rows) if rows else ""


def transfer_table(evidence: Evidence) -> str:
    """Return accuracies and gains on the student of the rewards and on the transfer student."""
    both = {seed: result for seed, result in evidence.seeds.items() if result.transfer is not None}
    there = [compared(result.transfer.document_accuracy) for result in both.values() if result.transfer is not None]
    rows = []
    for name, label in evidence.labels(there).items():
        pair = accuracy(both, name), pooled([scores.get(name, {}).values() for scores in there], low=0.0)
        rows.append([label, *map(percent_interval, pair)])
    gains = pooled(differences(both)), pooled([paired(scores, TRAINED, UNTRAINED) for scores in there])
    rows.append(["trained − untrained, points", *map(points_interval, gains)])
    rows.append(["share of this gain kept, %", UNKNOWN, percent_interval(kept(both))])
    return markdown_table(["accuracy, %", "student of the rewards", "another student"], rows) if both else ""


def arm_differences(evidence: Evidence, heading: str) -> dict[str, list[list[float]]]:
    """Return the trained teacher's accuracy minus the reference's, by arm, seed and document."""
    found = {}
    for name, arm in evidence.arms[heading].items():
        runs = [(arm[seed], evidence.reference[seed]) for seed in sorted(set(arm) & set(evidence.reference))]
        scores = [{"arm": a.document_accuracy[TRAINED], "reference": b.document_accuracy[TRAINED]} for a, b in runs]
        found[name] = [paired(each, "arm", "reference") for each in scores]
    return {name: groups for name, groups in found.items() if groups and all(groups)}


def arms_table(evidence: Evidence, heading: str) -> str:
    """Return the arms of a heading and their reference; p-values are Holm-corrected within the table."""
    groups = arm_differences(evidence, heading)
    tests = adjusted({name: sign_flip_test([*itertools.chain(*by_seed)]) for name, by_seed in groups.items()})
    rows = []
    for name, results in {REFERENCE: evidence.reference, **evidence.arms[heading]}.items():
        runs, less = list(results.values()), pooled(groups.get(name, []))
        lost = pooled([run.document_forgetting.get(TRAINED, {}).values() for run in runs])
        cells = [percent_interval(accuracy(results, TRAINED)), points_interval(pooled(differences(results)))]
        cells += [points_interval(lost), points_interval(less)]
        cells += [p_value(tests[name]) if name in tests else UNKNOWN, _reading(less)]
        minutes = known_mean(sum(run.seconds.values()) / 60 for run in runs)
        rows.append([name, *cells, _plain(known_mean(run.inner_runs for run in runs)), _plain(minutes, 1)])
    heads = ["", "trained, %", "trained − untrained, points", "forgetting of trained, points"]
    heads += [f"minus *{REFERENCE}*, points", "p, adjusted", "reading", "updates", "minutes"]
    return markdown_table(heads, rows)


def plot_intervals(rows: Mapping[str, tuple[Interval, Sequence[float]]], title: str, axis: str, path: Path) -> None:
    """Save a PNG of intervals by label, in %, with the means of single seeds as dots."""
    figure = new_figure(8.2, 1.5 + 0.42 * len(rows), title, "mean with 95 % interval; dots: single seeds")
    axes = figure.subplots()
    for place, (found, dots) in enumerate(rows.values()):
        axes.scatter([100 * dot for dot in dots], [place + 0.3] * len(dots), s=14, color=GREY, linewidths=0)
        draw_interval(axes, place, found)
    axes.axvline(0.0, color=INK, linewidth=1)
    axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=list(rows), xlabel=axis)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    save_figure(figure, path)


def draw(evidence: Evidence, place: Path) -> dict[str, str]:
    """Save the plots in a directory; return their Markdown by name."""
    place.mkdir(parents=True, exist_ok=True)
    seeds, drawn, variants, intervals = evidence.seeds, {"variants": "Accuracy by variant"}, {}, {}
    for name, label in evidence.labels(result.variants for result in seeds.values()).items():
        if (found := accuracy(seeds, name)) is not None:
            variants[label] = found, [r.variants[name].mean for r in seeds.values() if name in r.variants]
    plot_intervals(variants, drawn["variants"], "questions answered exactly (%)", place / "variants.png")
    for heading in evidence.arms:
        for name, groups in arm_differences(evidence, heading).items():
            if (found := pooled(groups)) is not None:
                intervals[name] = found, [float(np.mean(group)) for group in groups]
    if intervals:
        drawn["arms"] = f"Arms minus {REFERENCE}"
        plot_intervals(intervals, drawn["arms"], "points of accuracy with the trained teacher", place / "arms.png")
    return {name: f"![{title}]({place.name}/{name}.png)" for name, title in drawn.items()}


def kept_notes(path: Path) -> str:
    """Return the text between the markers of an existing document; raises ConfigError for broken markers."""
    text = path.read_text(encoding="utf-8") if path.is_file() else f"{OPEN}\n\n{CLOSE}"
    before, opened, rest = text.partition(OPEN)
    notes, closed, after = rest.partition(CLOSE)
    if not opened or not closed or any(mark in part for mark in (OPEN, CLOSE) for part in (before, notes, after)):
        raise ConfigError(
            f"{str(path)!r}: {OPEN!r} and {CLOSE!r} must occur once each, in this order. Nothing was written; correct "
            "the markers, so that the notes are not lost."
        )
    return notes


def write_document(evidence: Evidence, path: Path) -> Path:
    """Write a Markdown file, its notes preserved, with plots in a directory beside it of its name; return its path."""
    seeds = evidence.seeds
    notes, pictures = kept_notes(path), draw(evidence, path.with_suffix(""))
    wordings = sorted({wording for r in seeds.values() for means in r.phrasings.values() for wording in means})
    sections = {
        "Variants": f"{variants_table(evidence)}\n\n{pictures['variants']}",
        "Notes": f"{OPEN}{notes}{CLOSE}",
        "Differences": gains_table(seeds),
        "What the base does not know": unknown_table(evidence),
        "Phrasings of the questions": means_table(evidence, "phrasings", {w: f"{w}, %" for w in wordings}),
        "Retention": retention_table(evidence),
        "Self-edits": means_table(evidence, "edit_notes", _EDIT_NOTES),
        "Another student": transfer_table(evidence),
        "What each setting is worth": pictures.get("arms", ""),
    }
    sections |= {heading: arms_table(evidence, heading) for heading in evidence.arms}
    title = "# " + path.stem.capitalize().replace("-", ": ", 1)
    parts = [title, _runs(evidence), *(f"## {title}\n\n{text}" for title, text in sections.items() if text)]
    return write_atomically(path, "\n\n".join(parts) + "\n")


def _runs(evidence: Evidence) -> str:
    """Return the list of runs, their environment and the statistical methods."""
    config, seeds = evidence.config, evidence.seeds
    minutes = [sum(result.seconds.values()) / 60 for result in seeds.values()]
    documents = sorted({result.documents for result in seeds.values()})
    source = getattr(config.data, "path", None)
    lines = [
        f"Runs: `{config.name}`, seeds {', '.join(map(str, seeds))}, each with its own documents; "
        f"{', '.join(map(str, documents))} unseen test documents per seed"
        + (f", of `{source}`." if source is not None else "."),
        f"Each: {config.teacher.model} learns by {config.teacher.learning.algorithm} in {config.loop.rounds} rounds of "
        f"{config.loop.documents} documents and {config.teacher.samples} self-edits each, for {config.student.model}.",
        f"When: {' to '.join(dict.fromkeys(evidence.days))}; {min(minutes):.1f} to {max(minutes):.1f} min per seed.",
        f"Where: {os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}.",
        f"Code: {', '.join(sorted({f'`{result.code_digest[:12]}`' for result in seeds.values()}))}.",
        f"Command: `{evidence.command}`",
        "Accuracy in %. 95 % intervals: of a seed by the BCa bootstrap over its documents; of all seeds by the "
        "bootstrap over seeds and documents, too narrow for few seeds; random effects (Paule and Mandel 1982; Hartung "
        "and Knapp 2001) treat seeds as a sample. Differences are paired by document; p by sign flips.",
    ]
    lines += [f"Without a result: {'; '.join(evidence.missing)}."] if evidence.missing else []
    return "\n".join(f"- {line}" for line in lines)


def gather(runs: Sequence[PlannedRun], config: Path, command: str) -> Evidence:
    """Return the results so far, of any code version; raises ConfigError if no seed has one."""
    found = {run: result for run in runs if (result := read_result(run)) is not None}
    seeds = [run for run in found if run.group == SEEDS]
    if not seeds:
        raise ConfigError(f"no seed of the plan has a result. Run: {command}")
    arms: dict[str, dict[str, dict[int, RunResult]]] = {}
    for run, result in found.items():
        if run.group != SEEDS:
            arms.setdefault(run.group, {}).setdefault(run.name, {})[run.seed] = result
    reference = arms.pop(REFERENCE, {}).get(REFERENCE, {})
    days = [f"{datetime.fromtimestamp(run.result.stat().st_mtime, UTC):%Y-%m-%d}" for run in found]
    return Evidence(
        config=load(config, TrainTeacherConfig, seeds[0].overrides),
        seeds={run.seed: found[run] for run in seeds},
        reference=reference,
        arms=arms if reference else {},
        missing=[run.label for run in runs if run not in found],
        days=(min(days), max(days)),
        command=command,
    )


@plain_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run a plan and write the document."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.experiments.evidence", description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--work-dir", type=Path, default=Path(".preceptor/evidence"), help="of all runs")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="directory of the document and its plots")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of all runs"
    )
    parser.add_argument("--only", choices=("seeds", "arms", "document"), help="run one part, or nothing")
    given = parser.parse_args(arguments)
    # Exit cleanly, so that running children are terminated.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    places = ["--work-dir", str(given.work_dir), "--out", str(given.out)]
    places += [word for override in given.set for word in ("--set", override)]
    command = shlex.join(["python", "-m", "pipelines.experiments.evidence", str(given.plan), *places])
    plan = load(given.plan, GridPlan)
    plan = plan.model_copy(update={"common": (*plan.common, *given.set)})
    config = given.plan.parent / plan.config
    runs = planned_runs(plan, config, given.work_dir)
    wanted = [run for run in runs if given.only is None or (given.only == "seeds") == (run.group == SEEDS)]
    if given.only != "document":
        run_all(plan, config, wanted, given.work_dir, command, lambda line: print(line, flush=True))
    name = given.plan.stem.removesuffix("-plan")
    print(f"saved {write_document(gather(runs, config, command), given.out / f'{name}.md')}")


if __name__ == "__main__":
    main()
