"""The flow `study`: what one student learns from a corpus at several budgets, as accuracy over tokens."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow

from evaluation.common.data import digest_json
from evaluation.common.errors import ConfigError, InputError, ScoringError
from evaluation.statistics import Interval, PairedTest, compare
from evaluation.tasks import Document, Question
from pipelines.flow_run import entered
from pipelines.lineage.run import NOTE, log_finished
from pipelines.lineage.store import run_tags
from pipelines.loop.loop import Loop
from pipelines.loop.update import bank_of
from pipelines.models import ModelRef, open_student
from pipelines.plan import Step
from pipelines.records import Record
from pipelines.reports.console import Reporter
from pipelines.reports.format import markdown_table, percent_interval, plain_table, points_interval
from pipelines.reports.plots import BLUE, INK, new_figure, save_figure
from pipelines.settings import LoopSettings
from pipelines.terminal import open_console
from pipelines.write_corpus.config import WriteCorpusConfig, open_config
from pipelines.write_corpus.funnel import CorpusRow
from pipelines.write_corpus.output import read_corpus
from student.bank.scoring import ScoringFailure
from student.config import UpdateRecipe
from student.updates import UpdateOutcome, make_request
from teacher.self_edit import SelfEdit

if TYPE_CHECKING:
    from rich.table import Table

FLOW_NAME = "study"
BUDGETS = (1, 3, 10, 30)
"""In the tokens of one piece, for each section."""
_BASE = "0x"


class StudyPoint(Record):
    """A student that has learned a part of a corpus."""

    accuracy: dict[str, float]
    """By document id, in [0, 1]."""
    left_out: str = ""
    """Lines that were not trained on."""


class Budget(Record):
    """A budget, and what the student learned with it."""

    name: str
    tokens: int
    """Of the texts, each counted once however many epochs there are."""
    rows: int
    point: StudyPoint


class StudyResult(Record):
    """The result for scripts (`--json`)."""

    corpus: str
    corpus_digest: str
    """Of the rows' texts."""
    student: str
    documents: int
    questions: int
    piece_tokens: float
    """Budget 1x of a section: one self-edit's."""
    seed: int
    budgets: tuple[Budget, ...]
    accuracy: dict[str, Interval]
    """By budget, over documents, in [0, 1]."""
    gains: dict[str, Interval]
    """By budget: less the student that has learned nothing, paired by document."""
    tests: dict[str, PairedTest]
    mlflow_run_id: str = ""

    @property
    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the table."""
        rows = []
        for b in self.budgets:
            gain = points_interval(self.gains.get(f"{b.name}_minus_{_BASE}"))
            rows.append([b.name, f"{b.tokens:,}", f"{b.rows:,}", percent_interval(self.accuracy.get(b.name)), gain])
        return ["budget", "tokens", "rows", "accuracy (%)", "gain (points)"], rows

    @property
    def table(self) -> Table:
        """The table for a terminal."""
        what = f"{self.questions:,} questions on {self.documents:,} documents, 95 % bootstrap intervals over documents"
        table = plain_table(f"What {self.student} learned", f"{what}. 1x: {self.piece_tokens:.0f} tokens a section.")
        heads, rows = self.cells
        for head in heads:
            table.add_column(head, no_wrap=True)
        for row in rows:
            table.add_row(*row)
        return table


@flow(name=FLOW_NAME, persist_result=False)
def study(
    corpus: str,
    student: str = "",
    config_path: str = "configs/write-corpus.yaml",
    overrides: list[str] | None = None,
    work_dir: str = ".preceptor",
    piece_tokens: float = 0.0,
) -> StudyResult:
    """Train a student on a corpus at each of `BUDGETS` and ask it the corpus's questions; a killed study resumes.

    `piece_tokens` is the budget 1x of a section; 0 takes the mean tokens of the corpus's pieces.
    """
    place = Path(work_dir)
    config = open_config(Path(config_path), student, "", overrides or (), place).config
    if config.student is None:
        raise ConfigError("study: there is no student. Name one with --student MODEL.")
    rows, questions = read_corpus(Path(corpus))
    asked = {name: tuple(sets[1] or sets[0]) for name, sets in questions["train"].items()}
    written = {row.document_id for row in rows if row.split == "train"}
    asked = {name: mine for name, mine in asked.items() if mine and name in written}
    if not asked:
        raise InputError(
            f"corpus {corpus!r} has no question about a document of its training split. Write it with --student, which "
            "generates questions, or from documents with questions (docs/corpus.md)."
        )
    with entered(place, f"study {config.name}") as flow_run, Reporter(open_console(), len(BUDGETS) + 1) as reporter:
        with Loop(config.for_loop, place, (), (), reporter) as loop:
            result = _study(config, loop, corpus, rows, asked, piece_tokens)
        figure = place / "plots" / f"study-{config.name}.png"
        plot_study(result, figure)
        page = markdown_table(*result.cells)
        accuracy = {f"study/accuracy_{b.name}": result.accuracy[b.name].mean for b in result.budgets}
        run_id, link = log_finished(
            config.tracking,
            place,
            f"study {config.name}",
            params=config.model_dump(mode="json", exclude={"tracking"}),
            tags=run_tags(config, FLOW_NAME, flow_run) | {NOTE: page},
            metrics=accuracy,
            texts={"study.json": result.model_dump_json(indent=2), "study.md": page},
        )
        reporter.say(f"plot in {figure}, figures at {link}")
    return result.model_copy(update={"mlflow_run_id": run_id})


def _study(
    config: WriteCorpusConfig,
    loop: Loop,
    corpus: str,
    rows: Sequence[CorpusRow],
    asked: Mapping[str, tuple[Question, ...]],
    piece_tokens: float,
) -> StudyResult:
    train, budgets = [row for row in rows if row.split == "train"], []
    size = piece_tokens or mean_piece_tokens(train)
    for times in (0, *BUDGETS):
        chosen = rows_within(train, times * size, loop.seed("study"))
        lines = SelfEdit(implications=tuple(row.line for row in chosen))
        name = f"{times}x"
        with loop.reporter.step(Step("update", 1), f"study {name}"):
            point = _learned(config, loop, lines, asked)
        budgets.append(Budget(name=name, tokens=sum(row.tokens for row in chosen), rows=len(chosen), point=point))
    compared = compare(
        {b.name: b.point.accuracy for b in budgets}, [(b.name, _BASE) for b in budgets[1:]], seed=loop.seed("intervals")
    )
    return StudyResult(
        corpus=corpus,
        corpus_digest=digest_json(sorted(row.text for row in rows)),
        student=loop.settings.student.model,
        documents=len(asked),
        questions=sum(map(len, asked.values())),
        piece_tokens=size,
        seed=config.seed,
        budgets=tuple(budgets),
        accuracy=compared.variants,
        gains=compared.gains,
        tests=compared.tests,
    )


def _pieces(rows: Sequence[CorpusRow]) -> dict[str, list[CorpusRow]]:
    """Return the rows by piece, replayed text left out."""
    found: dict[str, list[CorpusRow]] = {}
    for row in rows:
        if row.prompt_digest:
            found.setdefault(row.id.rpartition("/")[0], []).append(row)
    return found


def mean_piece_tokens(rows: Sequence[CorpusRow]) -> float:
    """Return the mean tokens of a piece; InputError where a writer wrote none."""
    pieces = _pieces(rows)
    if not pieces:
        raise InputError(
            "corpus: no row of the training split was written by a model. Write it with a larger --tokens."
        )
    return sum(row.tokens for mine in pieces.values() for row in mine) / len(pieces)


def rows_within(rows: Sequence[CorpusRow], tokens: float, seed: int) -> list[CorpusRow]:
    """Return rows of about so many tokens for each section, pieces in random order, and their share of replay.

    A section with fewer tokens gives all of them. Table values and replayed text come in the share of the whole corpus.
    """
    pieces, chosen = _pieces(rows), list[CorpusRow]()
    sections: dict[str, list[str]] = {}
    for name in pieces:
        sections.setdefault(name.rsplit("/", 2)[0], []).append(name)
    for section, names in sorted(sections.items()):
        random.Random(f"{seed} {section}").shuffle(names)
        found = 0
        for row in (row for name in names for row in pieces[name]):
            if found + row.tokens / 2 > tokens:
                break
            chosen.append(row)
            found += row.tokens
    whole = sum(len(mine) for mine in pieces.values())
    others = [row for row in rows if not row.prompt_digest]
    return chosen + others[: round(len(others) * len(chosen) / whole)]


def _learned(
    config: WriteCorpusConfig, loop: Loop, lines: SelfEdit, asked: Mapping[str, tuple[Question, ...]]
) -> StudyPoint:
    seed, form = loop.seed("study", "update"), loop.settings.student.answer_format
    content = {
        "student": loop.student_digest,
        "recipe": config.update.model_dump(mode="json"),
        "format": form.model_dump(mode="json"),
        "lines": lines.digest,
        "asked": [[name, [[q.question, q.answer] for q in mine]] for name, mine in asked.items()],
        "seed": seed,
    }
    arguments = (loop.settings, config.update, lines, dict(asked), seed)
    describe = f"training the student on {len(lines.implications):,} texts"
    return loop.execution.run("study", content, learn_and_ask, *arguments, describe=describe)


def learn_and_ask(
    settings: LoopSettings,
    recipe: UpdateRecipe,
    lines: SelfEdit,
    asked: Mapping[str, Sequence[Question]],
    seed: int,
) -> StudyPoint:
    """Return how a student answers after one update on all lines; without lines, as it is.

    Raises:
        ScoringError: The update failed, or answers have no score.
    """
    form, student = settings.student.answer_format, open_student(ModelRef.of(settings.student, settings))
    adapter, left_out = None, ""
    with bank_of(settings, recipe) as bank:
        if lines.implications:
            document = Document(id="corpus", text="corpus")
            request = make_request("study", lines, document, student.tokenizer, recipe, form, seed)
            (result,) = bank.train([request])
            if result.outcome is not UpdateOutcome.OK:
                raise ScoringError(f"study: the student's update ended with {result.outcome.value}: {result.detail}")
            adapter, left_out = result.adapter, result.detail
        found = bank.score([adapter] * len(asked), list(asked.values()), student.tokenizer, form)
    accuracy = {}
    for name, scores in zip(asked, found, strict=True):
        if isinstance(scores, ScoringFailure):
            raise ScoringError(f"study: the answers about {name!r} have no score: {scores.reason}")
        accuracy[name] = sum(score.exact for score in scores) / len(scores)
    return StudyPoint(accuracy=accuracy, left_out=left_out)


def plot_study(result: StudyResult, path: Path) -> None:
    """Write a PNG of the accuracy over the tokens of training text, with intervals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"Accuracy of {result.student} over tokens of the corpus"
    figure = new_figure(7.2, 4.2, title, f"95 % bootstrap intervals over {result.documents:,} documents")
    axes = figure.subplots()
    learned = [b for b in result.budgets if b.tokens]
    intervals = [result.accuracy[b.name] for b in learned]
    means = [100 * each.mean for each in intervals]
    spread = [[100 * (i.mean - i.low) for i in intervals], [100 * (i.high - i.mean) for i in intervals]]
    places = [b.tokens for b in learned]
    axes.errorbar(places, means, yerr=spread, fmt="-o", color=BLUE, linewidth=2, capsize=3, label="after the update")
    axes.axhline(100 * result.accuracy[_BASE].mean, linestyle="--", color=INK, label="without an update")
    axes.set(xscale="log", xlabel="tokens", ylabel="questions answered exactly (%)")
    for budget, mean in zip(learned, means, strict=True):
        axes.annotate(budget.name, (budget.tokens, mean), xytext=(5, -12), textcoords="offset points", fontsize=9)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    save_figure(figure, path)
