"""Students side by side: records, statistics by document, and the tables and the page that show them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, compress
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from evaluation.statistics import Interval, PairedTest, known_mean, known_means
from pipelines.records import Answered, Record, VariantComparison, VariantScores
from pipelines.reports import format
from pipelines.reports.console import reading
from pipelines.terminal import printable

if TYPE_CHECKING:
    from rich.table import Table


class StudentAnswer(Answered):
    """An answer of a student; `edit` is the place of its seed. Right ones are the gold answer under exact match."""

    title: str
    group: str
    """Of the document; empty for none."""
    probability: float | None
    """Of the gold answer, in [0, 1]; None where an endpoint answers."""


class ScoredStudent(VariantScores):
    """A student on a suite; its name is its label. `accuracy` is over questions on which all have a verdict.

    `notes` are the mean `probability` of the gold answers and the share of `probes` answered, in [0, 1], if known.
    """

    words: tuple[str, ...]
    """As given, one for each seed."""
    digests: tuple[str | None, ...]
    """SHA-256 of each adapter, or of a model of its own; None for the base and for endpoints."""
    version: int | None = None
    night: str = ""
    """Of a single registered version: its number, and the night that made it."""
    answers: tuple[StudentAnswer, ...]
    """To all questions in their order, then the same of the next seed."""

    def seeds(self, question: int) -> tuple[StudentAnswer, ...]:
        """Return the answer of each seed to a question by its place."""
        return self.answers[question :: len(self.answers) // len(self.words)]

    def shares(self) -> list[float | None]:
        """Return for each question the share of seeds that answer right, in [0, 1]; None without a verdict."""
        places = range(len(self.answers) // len(self.words))
        return [known_mean(answer.right for answer in self.seeds(place)) for place in places]


class PairedDifference(NamedTuple):
    """A student less another on the same documents."""

    student: str
    other: str
    difference: Interval
    test: PairedTest
    detectable: float | None
    """Smallest true difference that this many documents show with 80 % power; None if unknown."""
    reading: str


class SuiteComparison(Record):
    """All students on one suite."""

    suite: str
    suite_digest: str
    by_text: bool
    """Whether answers are graded as texts."""
    students: tuple[ScoredStudent, ...]
    reference: str
    found: VariantComparison
    """Accuracy by label, and differences, whose tests are corrected together, by `LABEL_minus_LABEL`."""
    left_out: tuple[str, ...]
    """Ids of documents that a student has no score for."""
    mlflow_run_id: str = ""

    @property
    def pairs(self) -> list[PairedDifference]:
        """The differences to the reference, then those between the others."""
        from pipelines.train_teacher.comparison import gain_name

        found = []
        for a, b in pairs_of(self.students, self.reference):
            name = gain_name(f"{a}_minus_{b}")
            if (gain := self.found.gains.get(name)) is not None:
                test, least = self.found.tests[name], self.found.minimum_detectable.get(name)
                found.append(PairedDifference(a, b, gain, test, least, reading(gain, test, self.found.confidence)))
        return found

    @property
    def groups(self) -> dict[str, dict[str, float]]:
        """Accuracy by group and student, where documents have groups."""
        of = {answer.document: answer.group for answer in self.students[0].answers if answer.group}
        return {
            group: known_means({s.name: [s.accuracy.get(n) for n in of if of[n] == group] for s in self.students})
            for group in sorted(set(of.values()))
        }


class StudentsComparison(Record):
    """The result of `preceptor compare`."""

    suites: tuple[SuiteComparison, ...]
    seconds: float
    mlflow: str = ""
    """Where MLflow shows the students of all comparisons."""


def pairs_of(students: Sequence[VariantScores], reference: str) -> list[tuple[str, str]]:
    """Return all pairs of students, those with the reference first."""
    ordered = [reference, *(student.name for student in students if student.name != reference)]
    return [(other, first) for first, other in combinations(ordered, 2)]


def with_accuracy(students: Sequence[ScoredStudent]) -> tuple[ScoredStudent, ...]:
    """Return students with their accuracy by document, over the questions on which all have a verdict."""
    shares = [student.shares() for student in students]
    whole = [None not in row for row in zip(*shares, strict=True)]
    counted = []
    for student, mine in zip(students, shares, strict=True):
        rows: dict[str, list[float | None]] = {}
        for answer, share in compress(zip(student.answers, mine, strict=False), whole):
            rows.setdefault(answer.document, []).append(share)
        counted.append(student.model_copy(update={"accuracy": known_means(rows)}))
    return tuple(counted)


def compare_scored(
    students: Sequence[ScoredStudent], reference: str, intervals: Mapping[str, Any]
) -> VariantComparison:
    """Return intervals, all paired differences and their tests, with documents as units; see `compare_variants`."""
    from pipelines.train_teacher.comparison import compare_variants  # which imports models

    return compare_variants(students, intervals, pairs=pairs_of(students, reference))


def tables_of(suite: SuiteComparison) -> Iterator[Table]:
    """Yield the tables of a suite for the terminal: its students, then their paired differences."""
    level = f"{100 * suite.found.confidence:g} % bootstrap intervals over documents"
    left_out = f"; {format.counted(len(suite.left_out), 'document')} left out" if suite.left_out else ""
    title = f"{suite.suite}: {format.counted(suite.found.documents, 'document')}"
    notes = f"Accuracy in % with {level}{left_out}. p(gold): mean probability of the gold answers, in %."
    rows: list[tuple[str, ...]] = []
    for each in suite.students:
        shares = (format.percent(each.notes.get(name)) for name in ("probability", "probes"))
        rows.append((each.label, format.percent_interval(suite.found.variants.get(each.name)), *shares))
    yield _table(title, notes, ("student", "accuracy", "p(gold)", "probes"), rows)
    rows = []
    for a, b, gain, test, least, said in suite.pairs:
        cells = format.points_interval(gain), format.p_value(test.adjusted), format.percent(least), said
        rows.append((f"{a} minus {b}", *cells))
    notes = f"In points with {level}; p: sign flips, Holm-corrected; detectable: with 80 % power on these documents."
    yield _table("Paired differences", notes, ("pair", "difference", "p", "detectable", "reading"), rows)


def _table(title: str, notes: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.text import Text

    table = format.plain_table(title, notes)
    for i, head in enumerate(heads):
        table.add_column(head, overflow="fold", no_wrap=i > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def page_of(comparison: StudentsComparison) -> str:
    """Return the comparison as one HTML file that fetches nothing; what documents and students say is escaped."""
    loader = PackageLoader("pipelines.compare_students", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    page = environment.get_template("page.html.j2").render(
        c=comparison,
        f=format,
        rows=_rows,
        pc=lambda share: "" if share is None else f"{100 * share:.2f}",
        versions=lambda suite: sorted((s for s in suite.students if s.version), key=lambda s: s.version or 0),
    )
    return printable(page, "\n\t")


def _rows(suite: SuiteComparison) -> Iterator[tuple[StudentAnswer, list[tuple[Any, ...]], bool]]:
    """Yield each question with what each student answers, its share right and p(gold), and whether shares differ."""
    shares = [student.shares() for student in suite.students]
    for place, rights in enumerate(zip(*shares, strict=True)):
        cells = []
        for student, right in zip(suite.students, rights, strict=True):
            seeds = student.seeds(place)
            texts = " / ".join(dict.fromkeys(answer.answer or "(empty)" for answer in seeds))
            cells.append((student.name, texts, right, known_mean(answer.probability for answer in seeds)))
        yield suite.students[0].answers[place], cells, len(set(rights)) > 1
