"""What a run prints: progress, a line per round, one table at the end, and at most twelve lines of summary.

Everything reads at 80 columns and in logs without a terminal: nothing depends on colour, and nothing is cut.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from evaluation.gate.decisions import escaped
from evaluation.statistics import SMALL_SAMPLE, Interval, PairedTest
from pipelines.plan import Step
from pipelines.process import preceptor
from pipelines.records import Round, RunResult, VariantComparison, VariantScores, WarmStart
from pipelines.reports.format import (
    UNKNOWN,
    counted,
    duration,
    markdown_table,
    percent,
    percent_interval,
    plain_table,
    points_interval,
    tokens,
    wrapped,
)
from pipelines.terminal import LOG, check_terminated, guard_output, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pipelines.lineage.versions import VersionRecord

NEAR_ZERO = 0.02
"""Accuracy in [0, 1] below which a variant has learned next to nothing."""

_LINES = 12
"""Lines printed below the table at most."""
_LABEL = 12
"""Columns of the labels of these lines."""


class Reporter:
    """Progress on long work: a bar on a terminal, plain lines with the time elsewhere; a context manager."""

    _QUIET_SECONDS = 20.0
    """Without a terminal, the shortest time between two lines about single steps."""

    def __init__(self, console: Console, total: int) -> None:
        """Report on `total` steps to `console`."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.console = console
        self._total = total
        self._count = 0
        self._what = ""
        self._started = self._spoke = time.monotonic()
        columns = (SpinnerColumn(), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
        description = TextColumn("{task.description}", markup=False)
        self._progress = Progress(
            *columns, description, console=console, transient=True, disable=not console.is_terminal
        )
        self._bar = self._progress.add_task("starting", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        guard_output()  # a bar on a terminal puts streams of its own before the screen
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print a line that stays; nothing in it is markup."""
        from rich.text import Text

        self._spoke = time.monotonic()
        elapsed = int(self._spoke - self._started)
        clock = f"{elapsed // 60:3d}:{elapsed % 60:02d}"
        text = Text.assemble((clock, "dim"), f" {line}")
        self._progress.console.print(text, highlight=False, soft_wrap=True)
        LOG.info(printable(line))

    @contextmanager
    def step(self, step: Step, what: str) -> Iterator[None]:
        """Name a step of a plan while it is carried out, and count it at its end; `what` is its round or variant."""
        self._what = f"{what}: "
        self.begin(step.kind)
        yield
        self._what = ""
        self._count += 1
        self._progress.update(self._bar, completed=min(self._count, self._total))

    def begin(self, doing: str) -> None:
        """Name the work that starts now, unless the command was terminated."""
        check_terminated()
        doing = f"{self._what}{doing}"
        self._progress.update(self._bar, description=doing)
        if not self.console.is_terminal and time.monotonic() - self._spoke > self._QUIET_SECONDS:
            self.say(f"{doing} (step {self._count + 1} of {self._total})")


def warm_start_line(record: WarmStart) -> str:
    """Return one line about a warm start: documents, loss before and after it, time."""
    left_out = f" ({len(record.left_out)} left out)" if record.left_out else ""
    loss = f"loss {record.loss_before:.3f} -> {record.loss_after:.3f} nats a token"
    return f"warm start: {counted(len(record.document_ids), 'document')}{left_out}, {loss}, {duration(record.seconds)}"


def round_line(record: Round) -> str:
    """Return one line about a round: mean reward, the base student's, self-edits scored, failures, KL, time."""
    scored = sum(candidate.reward is not None for candidate in record.candidates)
    reasons = Counter(c.reason.value for c in record.candidates if c.reward is None and c.reason is not None)
    parts = ["no reward" if record.mean_reward is None else f"reward {record.mean_reward:.3f}"]
    if record.base_reward is not None:
        parts.append(f"base {record.base_reward:.3f}")
    parts.append(f"{scored}/{len(record.candidates)} scored")
    parts += [f"{count} {reason}" for reason, count in reasons.most_common()]
    if record.learning.kl is not None:
        parts.append(f"KL {record.learning.kl:.3f}")
    if record.development is not None:
        parts.append(f"development {record.development.mean:.3f} ({record.development.decision})")
    if not record.learning.examples:
        parts.append("no examples to learn from")
    parts.append(duration(sum(record.seconds.values())))
    return f"round {record.round}: " + ", ".join(parts)


def reading(gain: Interval, test: PairedTest | None, confidence: float) -> Literal["significant", "within noise"]:
    """Return whether a difference is significant: its interval excludes 0, and so does the corrected test."""
    excludes = gain.low > 0.0 or gain.high < 0.0
    return "significant" if excludes and (test is None or test.adjusted <= 1.0 - confidence) else "within noise"


def _gain(comparison: VariantComparison, reference: str, other: str) -> tuple[str, str]:
    """Return the difference of the reference to another variant and how to read it; unknown where not compared."""
    for first, second in ((reference, other), (other, reference)):
        name = f"{first}_minus_{second}".replace("_teacher", "")
        if name in comparison.gains:
            found = comparison.gains[name]
            said = reading(found, comparison.tests.get(name), comparison.confidence)
            if first == other:
                found = Interval(mean=-found.mean, low=-found.high, high=-found.low)
            return points_interval(found), said
    return UNKNOWN, UNKNOWN


def run_table(comparison: VariantComparison, variants: Sequence[VariantScores]) -> Table:
    """Return the table of a run: each variant's accuracy, with that on what the base does not know, and the gains."""
    from rich.text import Text

    labels = {f"{label.replace('-', '_')}_teacher": label for label in ("trained", "warm-started", "untrained")}
    last = next((name for name in labels if any(v.name == name for v in variants)), "untrained_teacher")
    label = labels[last]
    unknown, asked = comparison.unknown, ""
    if unknown is not None:
        asked = f"on the {unknown.unknown:,} of {counted(unknown.questions, 'question')} that the base fails in all "
        asked = f", below it {asked}{unknown.phrasings} phrasings ({counted(unknown.documents, 'document')})"
    table = plain_table(
        title=f"Variants on {counted(comparison.documents, 'test document')}",
        caption=f"Accuracy in %{asked}, and the {label} teacher minus the variant in points, paired by document, with "
        f"{100 * comparison.confidence:g} % bootstrap intervals. Significant: the interval excludes 0, and the "
        "sign-flip test corrected for the number of differences has p <= "
        f"{1 - comparison.confidence:.2g}. Failed: updates without a score.",
    )
    table.padding = 0
    table.add_column("\nVariant", overflow="fold")  # the only column that gives way on narrow terminals
    for name in ("\nAccuracy", f"{label.capitalize()}\nminus variant", "\nReading"):
        table.add_column(name, no_wrap=True)
    for name in ("Edit\ntokens", "\nFailed"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in variants:
        interval = comparison.variants.get(variant.name)
        # The base has no self-edits, and is wrong on all unknown questions by definition.
        on_unknown = unknown.variants.get(variant.name) if unknown is not None and variant.candidates else None
        cells = (
            variant.label,
            ("no scores" if interval is None else percent_interval(interval))
            + ("" if on_unknown is None else f"\n{percent_interval(on_unknown)}"),
            *_gain(comparison, last, variant.name),
            tokens(variant.edit_tokens),
            str(sum(variant.failures.values())),
        )
        table.add_row(*map(Text, cells))
    return table


def run_notes(result: RunResult, comparison: VariantComparison, variants: Sequence[VariantScores]) -> tuple[str, ...]:
    """Return the caveats of a run, for `RunResult.notes`; those already in it are not read."""
    return tuple(_caveats(result, comparison, variants))


def _caveats(result: RunResult, comparison: VariantComparison, variants: Sequence[VariantScores]) -> Iterator[str]:
    empty = sum(figures.get("mean_reward") is None for figures in result.rounds)
    if empty:
        yield f"No self-edit had a reward in {empty} of {counted(len(result.rounds), 'round')}."
    if result.variants and all(interval.mean < NEAR_ZERO for interval in result.variants.values()):
        yield (
            f"All variants answer under {100 * NEAR_ZERO:.0f} % of the questions: the models are too small for these "
            "documents or the recipe teaches too little; differences near zero mean nothing."
        )
    begun = None if result.warm_start is None else result.warm_start.development
    checked = [r for figures in result.rounds if (r := figures.get("development_reward")) is not None]
    if begun is not None and checked and max(checked) <= begun.mean:
        yield "No round was better than the warm start on the development documents: the trained teacher is that one."
    readings = {n: reading(gain, comparison.tests.get(n), comparison.confidence) for n, gain in result.gains.items()}
    taught = ("trained_minus", "warm_started_minus", "untrained_minus")
    noisy = [n.replace("_", " ") for n, said in readings.items() if said == "within noise" and n.startswith(taught)]
    if noisy:
        least = list(comparison.minimum_detectable.values())
        seen = f" (80 % power needs {percent(min(least))} to {percent(max(least))} points)" if least else ""
        yield f"Within noise: {'; '.join(noisy)}{seen}; 4 x data.test_documents halves the intervals."
    worse = [n for n, gain in result.gains.items() if readings[n] == "significant" and gain.high < 0.0]
    if worse := [name.replace("_", " ") for name in worse if not name.startswith(taught)]:
        yield f"Significantly below 0: {'; '.join(worse)}."
    if result.variants and result.documents < SMALL_SAMPLE:
        few = counted(result.documents, "test document")
        yield f"Only {few}: intervals from fewer than {SMALL_SAMPLE} are too narrow."
    failed = {
        variant.label: ", ".join(f"{count} {reason}" for reason, count in sorted(variant.failures.items()) if count)
        for variant in variants
    }
    if told := [f"{label}: {reasons}" for label, reasons in failed.items() if reasons]:
        yield f"Updates without a score: {'; '.join(told)}."
    if blank := [variant.label for variant in variants if not variant.accuracy]:
        yield f"Not compared, because no document has a score: {', '.join(blank)}."
    left_out = len({document for variant in variants for document in variant.accuracy}) - result.documents
    if left_out > 0:
        yield f"Left out of the comparison: {counted(left_out, 'document')} on which a variant has no score."
    if judge := result.judge:
        missing = f"{judge.unclear:,} unclear and {judge.failed:,} failed, which count as no verdict"
        yield f"The judge gave {counted(judge.verdicts, 'verdict')}, {missing}."
        if judge.flips is None:
            yield "The judge's consistency was not measured: set grading.grader.repeats above 1."
        else:
            flips = f"Asked again, the judge reverses its verdict in {percent_interval(judge.flips)} % of cases"
            yield f"{flips} ({counted(judge.repeated, 'answer')} judged repeatedly)."


def closing(
    result: RunResult,
    work_dir: Path,
    config_path: Path,
    overrides: Sequence[str] = (),
    figures: Path | None = None,
    link: str = "",
) -> str:
    """Return what follows the table: summary, caveats, artifacts and next steps, in at most twelve lines.

    Paths and overrides are those of the command line; `figures` is the directory of the plots, and `link` where MLflow
    shows the runs. Notes of the result that do not fit are counted.
    """
    settings = [part for override in (*overrides, f"seed={result.seed + 1}") for part in ("--set", override)]
    place = ("--work-dir", work_dir)
    last = [
        f"Artifacts   MLflow run {result.mlflow_run_id}",
        *([] if figures is None else [f"            plots in {figures}"]),
        "Next steps  all figures, then the same with another seed:",
        f"  {preceptor('ui', *place)}",
        *([f"  {link}"] if link else []),
        f"  {preceptor('train-teacher', config_path, *place, *settings)}",
    ]
    summary = _section("Summary", list(_summary(result)), 5)
    return "\n".join([*summary, *_section("Caveats", result.notes, _LINES - len(last) - len(summary), "- "), *last])


def _section(label: str, items: Sequence[str], most: int, bullet: str = "") -> list[str]:
    """Return items in wrapped lines behind a label, `most` at most; the last line counts those that do not fit."""
    lines: list[str] = []
    for i, item in enumerate(items):
        mine = wrapped(item, " " * _LABEL + bullet, " " * (_LABEL + len(bullet)))
        if len(lines) + len(mine) > most - (i + 1 < len(items)):
            lines.append(f"{' ' * _LABEL}{bullet}{len(items) - i} more in result.json of the MLflow run")
            break
        lines += mine
    return [label.ljust(_LABEL) + lines[0][_LABEL:], *lines[1:]] if lines else []


def _summary(result: RunResult) -> Iterator[str]:
    """Yield what the table does not say: warm start, course of the reward, specifications, what endpoints took."""
    if result.warm_start is not None:
        yield f"{warm_start_line(result.warm_start).capitalize()}."
    rewards = [reward for figures in result.rounds if (reward := figures.get("mean_reward")) is not None]
    course = f", mean training reward {rewards[0]:.3f} -> {rewards[-1]:.3f}" if len(rewards) > 1 else ""
    yield f"{counted(len(result.rounds), 'round')}{course}."
    graders = result.graders
    if graders and (pairs := [pair for pair in graders.agreement if pair.first == graders.configured]):
        kappas = [UNKNOWN if pair.kappa is None else f"{pair.kappa:.2f}" for pair in pairs]
        said = [f"{p.second} on {percent(p.equal)} % (kappa {k})" for p, k in zip(pairs, kappas, strict=True)]
        yield f"Grader {graders.configured} agrees with {', '.join(said)} of the answers."
    if specs := result.specs:
        best = specs.scores[specs.fixed]
        score = "no score" if best is None else f"{percent(best)} %"
        yield f"Best fixed specification on {counted(specs.tasks, 'training task')}: {specs.fixed}, {score}."
    for role, spent in result.spent.items():
        failed = f" ({spent.failures:,} without a reply)" if spent.failures else ""
        yield f"Endpoint {role}: {counted(spent.calls, 'call')}{failed}, {spent.tokens:,} tokens."


def print_run(
    console: Console, comparison: VariantComparison, variants: Sequence[VariantScores], last_words: str
) -> None:
    """Print the table and the closing text, which is neither wrapped again nor read as markup."""
    console.print(run_table(comparison, variants))
    console.print(last_words, markup=False, highlight=False, soft_wrap=True)
    LOG.info(printable(last_words, "\n"))


def run_markdown(comparison: VariantComparison, variants: Sequence[VariantScores], link: str) -> str:
    """Return each variant's accuracy and where MLflow shows the runs, in Markdown."""
    rows = []
    for variant in variants:
        interval = comparison.variants.get(variant.name)
        rows.append([escaped(variant.label), "no scores" if interval is None else percent_interval(interval)])
    table = markdown_table([f"variant, {counted(comparison.documents, 'test document')}", "accuracy in %"], rows)
    return f"{table}\n\n[Runs in MLflow]({link})\n"


def versions_table(role: str, history: Sequence[VersionRecord]) -> Table:
    """Return the table of a role's versions, without empty columns, and the reasons below it; it fits 100 columns."""
    from rich.text import Text

    def shown(record: VersionRecord) -> dict[str, str]:
        known = {name: percent(score) for name, score in record.scores.items()}
        return {
            "version": str(record.version),
            "aliases": ", ".join(record.aliases),
            "state": record.state or "",
            "gate": record.decision or "",
            "new": known.get("new", ""),
            "general": " -> ".join(known[name] for name in ("probes_before", "probes_after") if name in known),
            "reward": known.get("reward", ""),
            "teacher": record.teacher or "",
            "night": record.night or "",
            "replaced": "" if record.parent is None else str(record.parent),
            "created": f"{record.created:%Y-%m-%d}",
        }

    rows, notes = [shown(record) for record in history], ["Scores in %, dates in UTC."]
    heads = [head for head in rows[0] if any(row[head] for row in rows)]
    table = plain_table(f"Versions of the {role}")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[head]) for head in heads))
    for record in history:
        left = "erased" if record.erased else "rolled back"
        reasons = {left: record.reason, "promoted despite the gate": record.despite}
        notes += [f"Version {record.version} was {what} because: {why}" for what, why in reasons.items() if why]
    table.caption = Text("\n".join(notes))
    return table
