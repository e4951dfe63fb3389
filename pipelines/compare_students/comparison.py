"""Students side by side: records, statistics by document, and the tables and the page that show them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, compress
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import Field

from evaluation.gate.decisions import escaped
from evaluation.statistics import POWER, Comparison, Interval, PairedTest, compare, known_mean, known_means
from pipelines.records import Record
from pipelines.reports import format
from pipelines.reports.console import reading
from pipelines.reports.plots import PlottedScores
from pipelines.terminal import printable

CONFIDENCE = 0.95
"""Level of all intervals."""


class StudentAnswer(Record):
    """A question with what one student answers."""

    document: str
    title: str
    group: str
    """Of the document; empty for none."""
    question: str
    gold: str
    answer: str
    """Of several seeds, the different ones. Right ones are the gold answer where exact match decides."""
    right: float | None
    """Share of the seeds that answer right, in [0, 1]; None without a verdict."""
    probability: float | None
    """Of the gold answer, in [0, 1], the mean over seeds; None where an endpoint answers."""


class ScoredStudent(Record):
    """A student on a suite."""

    label: str
    words: tuple[str, ...]
    """As given, one for each seed."""
    digests: tuple[str | None, ...] = ()
    """SHA-256 of each adapter, or of a model of its own; None for the base and for endpoints."""
    version: int | None = None
    night: str = ""
    """Of a single registered version: its number, and the night that made it."""
    accuracy: Interval | None
    """Over the documents that all students have scores for, in [0, 1]."""
    probability: float | None
    probes: float | None
    """Mean probability of the gold answers, and share of the retention probes answered, in [0, 1]; None without any."""
    documents: dict[str, float]
    """Accuracy by document id, over the questions on which all students have a verdict, in [0, 1]."""
    answers: tuple[StudentAnswer, ...]
    """To every question, in the same order for all students."""

    @property
    def unanswered(self) -> int:
        """Questions without a verdict."""
        return sum(answer.right is None for answer in self.answers)


class PairedDifference(Record):
    """A student less another on the same documents."""

    student: str
    other: str
    difference: Interval
    """In [-1, 1]."""
    test: PairedTest
    minimum_detectable: float | None
    """Smallest true difference that this many documents show with 80 % power; None if unknown."""

    @property
    def reading(self) -> str:
        """`significant` or `within noise`."""
        return reading(self.difference, self.test, CONFIDENCE)


class SuiteComparison(Record):
    """All students on one suite."""

    suite: str
    suite_digest: str
    documents: int
    """Documents that all students have scores for, the basis of all figures."""
    left_out: tuple[str, ...] = ()
    """Ids of the others."""
    by_text: bool
    """Whether answers are graded as texts."""
    students: tuple[ScoredStudent, ...]
    pairs: tuple[PairedDifference, ...]
    """To the reference, then between the others; their tests are corrected together."""

    @property
    def title(self) -> str:
        """Of a plot or table."""
        return f"{self.suite}: {format.counted(self.documents, 'document')}"

    def plotted(self) -> list[PlottedScores]:
        """Return the students as rows of a plot."""
        return [PlottedScores(each.label, tuple(each.documents.values()), each.accuracy) for each in self.students]

    @property
    def versions(self) -> list[ScoredStudent]:
        """The registered versions by number."""
        found = [each for each in self.students if each.version is not None and each.accuracy is not None]
        return sorted(found, key=lambda each: each.version or 0)

    def groups(self) -> dict[str, dict[str, float]]:
        """Return the accuracy by group and student, where documents have groups."""
        of = {answer.document: answer.group for answer in self.students[0].answers if answer.group}
        named = {group: [name for name in of if of[name] == group] for group in sorted(set(of.values()))}
        return {
            group: known_means({s.label: [s.documents.get(name) for name in names] for s in self.students})
            for group, names in named.items()
        }


class StudentsComparison(Record):
    """The result of `preceptor compare`."""

    reference: str
    """Label of the student that the others are compared with."""
    suites: tuple[SuiteComparison, ...] = Field(min_length=1)
    seconds: float = 0.0
    mlflow_run_id: str = ""
    mlflow: str = ""
    """Address of that run in MLflow."""


Verdicts = Mapping[str, Sequence[float | None]]
"""Document id -> for each question, the share of seeds that answer right; None without a verdict."""


class Compared(NamedTuple):
    """The statistics of a suite."""

    scores: dict[str, dict[str, float]]
    """Student -> document id -> accuracy; without the questions on which a student has no verdict."""
    comparison: Comparison
    pairs: tuple[PairedDifference, ...]


def compare_verdicts(
    verdicts: Mapping[str, Verdicts], reference: str, *, confidence: float = CONFIDENCE, resamples: int, seed: int
) -> Compared:
    """Return intervals, paired differences and tests of at least two students, with documents as units.

    Raises:
        ScoringError: No document has a score for every student.
    """
    of_document = {name: [mine[name] for mine in verdicts.values()] for name in next(iter(verdicts.values()))}
    whole = {
        name: [None not in all_of_it for all_of_it in zip(*rows, strict=True)] for name, rows in of_document.items()
    }
    scores = {
        label: known_means({name: compress(row, whole[name]) for name, row in mine.items()})
        for label, mine in verdicts.items()
    }
    ordered = [reference, *(label for label in verdicts if label != reference)]
    pairs = [(other, first) for first, other in combinations(ordered, 2)]
    found = compare(scores, pairs, confidence=confidence, resamples=resamples, seed=seed)
    differences = [
        PairedDifference(
            student=a,
            other=b,
            difference=found.gains[name],
            test=found.tests[name],
            minimum_detectable=found.minimum_detectable.get(name),
        )
        for a, b in pairs
        if (name := f"{a}_minus_{b}") in found.gains
    ]
    return Compared(scores, found, tuple(differences))


class ShownTable(NamedTuple):
    """A table for terminals and Markdown."""

    title: str
    caption: str
    heads: list[str]
    rows: list[list[str]]


def tables_of(comparison: StudentsComparison) -> Iterator[ShownTable]:
    """Yield the tables of each suite: the students, then their paired differences."""
    for suite in comparison.suites:
        left_out = (
            f" {format.counted(len(suite.left_out), 'document')} without a score left out." if suite.left_out else ""
        )
        level = f"{100 * CONFIDENCE:g} % bootstrap intervals over documents"
        figures = f"Accuracy in % with {level}; p(gold): probability of the gold answers in %."
        heads = ["student", "accuracy", "p(gold)", "probes", "no verdict"]
        rows = [
            [
                each.label + (f" ({len(each.words)} seeds)" if len(each.words) > 1 else ""),
                format.percent_interval(each.accuracy),
                *(format.percent(share) for share in (each.probability, each.probes)),
                str(each.unanswered),
            ]
            for each in suite.students
        ]
        yield ShownTable(suite.title, figures + left_out, heads, rows)
        tests = f"In points with {level}. p: sign flips, corrected by Holm for {len(suite.pairs)} differences; "
        tests += f"detectable: with {POWER:.0%} power on this many documents."
        pairs = [
            [
                f"{each.student} − {each.other}",
                format.points_interval(each.difference),
                format.p_value(each.test.adjusted),
                each.reading,
                format.percent(each.minimum_detectable),
            ]
            for each in suite.pairs
        ]
        yield ShownTable(f"{suite.suite}: differences", tests, ["pair", "difference", "p", "", "detectable"], pairs)


def comparison_markdown(comparison: StudentsComparison) -> str:
    """Return the tables as Markdown."""
    lines = ["# Students side by side", ""]
    for table in tables_of(comparison):
        rows = [[escaped(row[0]), *row[1:]] for row in table.rows]
        lines += [f"## {escaped(table.title)}", "", format.markdown_table(table.heads, rows), "", table.caption, ""]
    return printable("\n".join([*lines, *([f"MLflow: {comparison.mlflow}"] if comparison.mlflow else [])]) + "\n", "\n")


def page_of(comparison: StudentsComparison) -> str:
    """Return the comparison as one HTML file that fetches nothing; what documents and students say is escaped."""
    loader = PackageLoader("pipelines.compare_students", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    page = environment.get_template("page.html.j2").render(
        c=comparison,
        f=format,
        questions=_questions,
        pc=lambda share: "" if share is None else f"{100 * share:.2f}",
        known_mean=known_mean,
    )
    return printable(page, "\n\t")


def _questions(suite: SuiteComparison) -> Iterator[tuple[StudentAnswer, tuple[StudentAnswer, ...], bool]]:
    """Yield each question with all students' answers, and whether these differ in being right."""
    for row in zip(*(student.answers for student in suite.students), strict=True):
        yield row[0], row, len({answer.right for answer in row}) > 1


def metrics_of(student: ScoredStudent, suite: SuiteComparison) -> dict[str, Any]:
    """Return a student's figures on a suite for MLflow; what is not known is None."""
    figures: dict[str, float | None] = {
        "eval/accuracy": None,
        "eval/probability": student.probability,
        "eval/probes": student.probes,
    }
    gain = next((each for each in suite.pairs if each.student == student.label), None)
    for name, interval in {"eval/accuracy": student.accuracy, "gain/reference": gain and gain.difference}.items():
        if interval is not None:
            figures |= {name: interval.mean, f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}
    figures["gain/reference_p_adjusted"] = None if gain is None else gain.test.adjusted
    return figures | {"eval/documents": suite.documents, "eval/unanswered": student.unanswered}
