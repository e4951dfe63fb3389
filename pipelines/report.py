"""What a run says in the terminal: a line for each round, two tables, and plain sentences at the end.

Everything reads at 80 columns and in logs without a terminal: nothing depends on colour, and nothing is cut.
"""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.statistics import SMALL_SAMPLE
from pipelines.records import Interval, ReliabilityRecord, RoundRecord
from pipelines.results import ComparisonRecord, FamilyRecord, RunResult, VariantRecord

WIDTH = 80
"""Columns that sentences are wrapped to; commands and paths are never broken."""

NEAR_ZERO = 0.02
"""Accuracy below which a variant has learned next to nothing; in [0, 1]."""

Verdict = Literal["above 0", "within noise", "below 0"]

_UNKNOWN = "-"

_BLANK = "    \n"
_LINE_UNDER_HEAD = box.Box(2 * _BLANK + " -- \n" + 5 * _BLANK, ascii=True)


def verdict(gain: Interval) -> Verdict:
    """Return what the interval of a difference shows: its sign, or nothing where it contains 0."""
    if gain.low > 0.0:
        return "above 0"
    return "below 0" if gain.high < 0.0 else "within noise"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def round_line(record: RoundRecord) -> str:
    """Return one line about a round: reward beside the student's without an update, what was scored, KL, time."""
    scored = sum(candidate.reward is not None for candidate in record.candidates)
    reasons = Counter(c.reason.value for c in record.candidates if c.reward is None and c.reason is not None)
    parts = ["no reward" if record.mean_reward is None else f"reward {record.mean_reward:.3f}"]
    if record.base_reward is not None:
        parts.append(f"base {record.base_reward:.3f}")
    parts.append(f"{scored}/{len(record.candidates)} scored")
    parts += [f"{count} {reason}" for reason, count in reasons.most_common()]
    if record.learning.kl is not None:
        parts.append(f"KL {record.learning.kl:.3f}")
    if record.reliability is not None:
        parts.append(f"reliability {record.reliability.of_reward:.2f}")
    if record.development is not None:
        parts.append(f"development {record.development.mean:.3f} ({record.development.decision})")
    if not record.learning.examples:
        parts.append("nothing to learn from")
    parts.append(_duration(sum(record.seconds.values())))
    return f"round {record.round}: " + ", ".join(parts)


def pilot_line(records: Mapping[str, ReliabilityRecord]) -> str:
    """Return one line on how reliable rewards are before any learning, by metric."""
    if not records:
        return "reliability of rewards: cannot be told, too few self-edits were updated"
    told = [
        f"{metric} {record.of_one:.2f} from one update, {record.of_reward:.2f} from {record.runs:.0f}"
        for metric, record in records.items()
    ]
    return "reliability of rewards before learning: " + "; ".join(told)


def comparison_table(comparison: ComparisonRecord, variants: Sequence[VariantRecord]) -> Table:
    """Return the variants side by side: accuracy with its interval, by phrasing, tokens, updates without scores."""
    table = plain_table(
        title=f"Variants on {counted(comparison.documents, 'test document')}",
        caption=f"Accuracy in % with {_level(comparison)} bootstrap interval over documents. Tokens are means: an edit "
        "as the teacher wrote it; an update without padding. Failed: updates without scores.",
    )
    phrasings = [_phrasings(variant) for variant in variants]
    longest = max((len(line) for lines in phrasings for line in lines), default=0)
    # Only the first column may become narrower: rich crops columns when all of them bargain for width.
    table.add_column("\nVariant", overflow="fold")
    table.add_column("\nAccuracy", no_wrap=True)
    table.add_column("By\nphrasing", width=min(max(longest, 8), 20), overflow="fold")
    cells = any(variant.cells is not None for variant in variants)
    if cells:
        table.add_column("Cells\nright", justify="right", no_wrap=True)
    for name in ("Edit\ntokens", "Training\ntokens", "\nFailed"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant, lines in zip(variants, phrasings, strict=True):
        interval = comparison.variants.get(variant.name)
        row = (
            variant.label,
            "no scores" if interval is None else _percent(interval),
            "\n".join(lines),
            *([_UNKNOWN if variant.cells is None else f"{100 * variant.cells:.1f}"] if cells else []),
            _tokens(variant.edit_tokens),
            _tokens(variant.training_tokens),
            str(sum(variant.failures.values())),
        )
        table.add_row(*map(Text, row))
    return table


def gains_table(comparison: ComparisonRecord) -> Table:
    """Return the paired differences in points: interval, whether it excludes 0, smallest difference that would show."""
    table = plain_table(
        title=f"Differences on {counted(comparison.documents, 'test document')}",
        caption=f"Paired by document, in points, with {_level(comparison)} bootstrap interval. Detectable: the "
        "smallest true difference that so many documents show with 80 % power; - where it cannot be told. p: two-sided "
        "sign-flip test over documents, corrected for the number of differences.",
    )
    table.add_column("Difference", overflow="fold")
    table.add_column("Points", justify="right", no_wrap=True)
    table.add_column("Interval", no_wrap=True)
    table.add_column("Reading", no_wrap=True)
    table.add_column("Detectable", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    for name, gain in comparison.gains.items():
        least, test = comparison.minimum_detectable.get(name), comparison.tests.get(name)
        cells = (
            _in_words(name),
            points(gain.mean),
            f"[{points(gain.low)}, {points(gain.high)}]",
            verdict(gain),
            _UNKNOWN if least is None else f"{100 * least:.1f}",
            _UNKNOWN if test is None else p_value(test.adjusted),
        )
        table.add_row(*map(Text, cells))
    return table


_BY_FAMILY = ("base", "untrained_teacher", "fixed_spec", "trained_teacher", "other_document")
"""Variants in the table of families, in this order, where they are there."""


def families_table(families: Mapping[str, FamilyRecord], variants: Sequence[VariantRecord]) -> Table:
    """Return the accuracy of some variants by family of rules."""
    table = plain_table(
        title="Accuracy in % by family of rules",
        caption="Families marked * are in no training task. Some have few tasks: read the differences above first.",
    )
    labels = {variant.name: variant.label for variant in variants}
    shown = [name for name in _BY_FAMILY if name in labels]
    table.add_column("Family", no_wrap=True)
    table.add_column("Tasks", justify="right", no_wrap=True)
    for name in shown:
        table.add_column(labels[name], justify="right", overflow="fold")
    for family, record in families.items():
        scores = [record.accuracy.get(name) for name in shown]
        cells = [_UNKNOWN if score is None else f"{100 * score:.0f}" for score in scores]
        table.add_row(*map(Text, (f"{family}{' *' if record.held_out else ''}", str(record.tasks), *cells)))
    return table


def p_value(value: float) -> str:
    """Return a p-value to three digits after the point."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def next_notes(result: RunResult, variants: Sequence[VariantRecord] = ()) -> tuple[str, ...]:
    """Return what a reader must know beside the figures, one sentence or two each, for `RunResult.notes`.

    Args:
        result: Its `notes` are not read.
        variants: What the result was made from: tells of failed updates and of documents that were left out.
    """
    return (*_result_notes(result), *_variant_notes(result, variants), *_endpoint_notes(result))


def _result_notes(result: RunResult) -> Iterator[str]:
    """Yield notes on rounds, levels, differences and the number of documents."""
    empty = sum(figures.get("mean_reward") is None for figures in result.rounds)
    if empty:
        yield f"No self-edit had a reward in {empty} of {counted(len(result.rounds), 'round')}."
    if result.variants and all(interval.mean < NEAR_ZERO for interval in result.variants.values()):
        yield (
            f"All variants answer under {100 * NEAR_ZERO:.0f} % of the questions: these models are too small for these "
            "documents, or the update teaches too little. Differences between scores near zero mean nothing."
        )
    unclear = [_in_words(name) for name, gain in result.gains.items() if verdict(gain) == "within noise"]
    if unclear:
        yield (
            f"Within noise: {'; '.join(unclear)}. More test documents (data.test_documents) narrow the intervals: "
            "four times as many halve them."
        )
    worse = [_in_words(name) for name, gain in result.gains.items() if verdict(gain) == "below 0"]
    if worse:
        yield f"Below 0, so the first did worse than the second: {'; '.join(worse)}."
    if result.variants and result.documents < SMALL_SAMPLE:
        yield (
            f"Only {counted(result.documents, 'test document')}: intervals from fewer than {SMALL_SAMPLE} are too "
            "narrow, so a difference that looks clear here may not be."
        )


_ROLES = {"external": "external generator"}


def _endpoint_notes(result: RunResult) -> Iterator[str]:
    """Yield how noisy the judge was, and what was spent at endpoints."""
    judge = result.judge
    if judge is not None:
        missing = f"{judge.unclear:,} unclear, {judge.failed:,} failed: these count for nothing"
        yield f"The judge was asked for {counted(judge.verdicts, 'verdict')}, {missing}."
        if judge.flips is None:
            yield "How far the judge disagrees with itself was not measured: set grading.grader.repeats above 1."
        else:
            low, high = 100 * judge.flips.low, 100 * judge.flips.high
            yield (
                f"Asked once more, the judge gives the other verdict in {100 * judge.flips.mean:.1f} % "
                f"[{low:.1f}, {high:.1f}] of cases ({counted(judge.repeated, 'answer')} with repeats)."
            )
    for role, spent in result.spent.items():
        price = "" if spent.cost is None else f", {spent.cost:,.4f} {spent.currency}"
        failed = f", of which {spent.failures:,} brought no reply" if spent.failures else ""
        used = f"{counted(spent.calls, 'call')}{failed}, {spent.tokens:,} tokens{price}"
        yield f"Spent at the endpoint of the {_ROLES.get(role, role)}: {used}."


def _variant_notes(result: RunResult, variants: Sequence[VariantRecord]) -> Iterator[str]:
    """Yield notes on updates that failed and on documents that are not compared."""
    for variant in variants:
        failed = ", ".join(f"{count} {reason}" for reason, count in sorted(variant.failures.items()) if count)
        if failed:
            yield f"Updates without scores for {variant.label}: {failed}."
        if not variant.accuracy:
            yield f"No document has a score for {variant.label}; it is not compared."
    left_out = len({document for variant in variants for document in variant.accuracy}) - result.documents
    if left_out > 0:
        yield f"Left out of the comparison: {counted(left_out, 'document')} on which a variant has no score."


def closing(result: RunResult, work_dir: Path, config_path: Path, run_ids: Mapping[str, str] | None = None) -> str:
    """Return the last words of a run: what was found, what to mind, where it is, and what to type next.

    Args:
        result: Its `notes` are shown; `next_notes` makes them.
        work_dir: As given on the command line.
        config_path: As given on the command line.
        run_ids: Further runs to name, such as `{"Prefect flow run": "..."}`; MLflow's is in the result.

    Returns:
        Plain text; sentences are wrapped at `WIDTH` columns, commands and ids stand on lines of their own.
    """
    lines = ["What was found", *_wrapped(_opening(result))]
    lines += [line for sentence in _findings(result) for line in _wrapped(sentence, bullet=True)]
    lines += [line for sentence in _on_specifications(result) for line in _wrapped(sentence, bullet=True)]
    if result.padding_share is not None:
        lines += _wrapped(f"Padding in training the students: {100 * result.padding_share:.1f} % of token places.")
    if result.notes:
        lines += ["", "Mind", *(line for note in result.notes for line in _wrapped(note, bullet=True))]
    places = {"work directory": str(work_dir), "MLflow run": result.mlflow_run_id, **(run_ids or {})}
    lines += ["", "Where it is", *(f"  {name}: {value}" for name, value in places.items() if value)]
    config, work = shlex.quote(str(config_path)), shlex.quote(str(work_dir))
    lines += [
        "",
        "Next",
        "  See every figure with what it was made from:",
        f"    preceptor ui --work-dir {work}",
        "  See whether another seed says the same:",
        f"    preceptor train-teacher {config} --set seed={result.seed + 1}",
    ]
    return "\n".join(lines)


def print_report(
    console: Console,
    comparison: ComparisonRecord,
    variants: Sequence[VariantRecord],
    families: Mapping[str, FamilyRecord],
    last_words: str,
) -> None:
    """Print the tables and the closing text, which is neither wrapped again nor read as markup."""
    console.print(comparison_table(comparison, variants))
    if comparison.gains:
        console.print(gains_table(comparison))
    if families:
        console.print(families_table(families, variants))
    console.print(last_words, markup=False, highlight=False, soft_wrap=True)


def _opening(result: RunResult) -> str:
    """Return a sentence on how much was done, with the course of the reward, claiming nothing."""
    sentence = f"Compared on {counted(result.documents, 'test document')}"
    sentence += f" after {counted(len(result.rounds), 'round')} of learning." if result.rounds else "; nothing learned."
    rewards = [figures.get("mean_reward") for figures in result.rounds]
    known = [reward for reward in rewards if reward is not None]
    if len(known) > 1:
        sentence += (
            f" The mean reward was {known[0]:.3f} in the first round and {known[-1]:.3f} in the last, on documents "
            "that the teacher learns on; only the comparison below tells whether it became better."
        )
    return sentence


def _findings(result: RunResult) -> Iterator[str]:
    """Yield a sentence for each difference."""
    meaning: dict[Verdict, str] = {
        "above 0": "Shown: the whole interval is above 0.",
        "within noise": "Not shown: the interval contains 0.",
        "below 0": "Shown to be worse: the whole interval is below 0.",
    }
    if not result.gains:
        yield "No two variants were compared."
    for name, gain in result.gains.items():
        figures = f"{points(gain.mean)} points [{points(gain.low)}, {points(gain.high)}]"
        yield f"{_in_words(name)}: {figures}. {meaning[verdict(gain)]}"


def _on_specifications(result: RunResult) -> Iterator[str]:
    """Yield which specification is best for all tasks, and how near the trained teacher is to the best of each."""
    found = result.specs
    if found is None:
        return
    best, tried = found.scores[found.fixed], f"{counted(len(found.scores), 'specification')} tried"
    score = "no score" if best is None else f"{100 * best:.1f} %"
    yield f"Best fixed specification on {counted(found.tasks, 'training task')}: {found.fixed}, {score} ({tried})."
    oracle = found.oracle
    if oracle is not None:
        text = f"Best specification of each of {counted(oracle.tasks, 'test task')}: {_percent(oracle.oracle)} %"
        if oracle.regret is not None:
            text += f"; the trained teacher is {points(-oracle.regret.mean)} points from it"
        if oracle.share is not None:
            text += f" and has {_percent(oracle.share)} % of it"
        yield text + "."


def plain_table(title: str, caption: str) -> Table:
    """Return an empty table without vertical lines, which cost columns."""
    return Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=_LINE_UNDER_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _wrapped(text: str, *, bullet: bool = False) -> list[str]:
    """Return `text` in indented lines of at most `WIDTH` columns, longer only where one word is longer."""
    first, rest = ("  - ", "    ") if bullet else ("  ", "  ")
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _phrasings(variant: VariantRecord) -> list[str]:
    return [f"{name} {100 * value:.1f}" for name, value in sorted(variant.phrasings.items())] or [_UNKNOWN]


def _in_words(name: str) -> str:
    return name.replace("_", " ")


def _level(comparison: ComparisonRecord) -> str:
    return f"{100 * comparison.confidence:g} %"


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(difference: float) -> str:
    """Return a difference in points with its sign; what rounds to zero has a plus."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def _tokens(number: float | None) -> str:
    return _UNKNOWN if number is None else f"{number:,.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
