"""`preceptor inbox`: what comes in, what is there, and what is learned again. Nothing heavy is imported."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evaluation.errors import ConfigError, InputError
from pipelines.inbox.documents import InboxDocument, Route
from pipelines.inbox.readers import Format
from pipelines.inbox.sections import MOST_CHARACTERS
from pipelines.inbox.store import INBOX_FILE, InboxStore

if TYPE_CHECKING:
    from pipelines.inbox.intake import IntakeSettings, Taken

app = typer.Typer(
    help="Documents that arrive during the day and are learned at night.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _inbox() -> None:
    """Documents that arrive during the day and are learned at night."""


_WorkDir = Annotated[Path, typer.Option("--work-dir", help="Directory for records, adapters and the embedded stores.")]
_From = Annotated[Path, typer.Argument(metavar="FILE|DIR|-", help="What to take; - is standard input.")]
_Source = Annotated[str | None, typer.Option("--source", help="Where the documents came from [the files' paths].")]
_Effective = Annotated[str | None, typer.Option("--effective", help="Day from which they hold, as YYYY-MM-DD.")]
_Supersedes = Annotated[
    list[str] | None, typer.Option("--supersedes", help="Id or source of what they replace; repeatable.")
]
_Route = Annotated[Route | None, typer.Option("--route", help="Where they shall go [left to the pipeline].")]
_Format = Annotated[Format | None, typer.Option("--format", help="Read as this [by the names; jsonl for -].")]
_Most = Annotated[int, typer.Option("--most-characters", help="Split documents that are longer than this.")]
_System = Annotated[bool, typer.Option("--with-system", help="Keep the system prompts of transcripts.")]


@app.command("add")
def add(
    path: _From,
    work_dir: _WorkDir = Path(".preceptor"),
    source: _Source = None,
    effective: _Effective = None,
    supersedes: _Supersedes = None,
    route: _Route = None,
    format_: _Format = None,
    most_characters: _Most = MOST_CHARACTERS,
    with_system: _System = False,
) -> None:
    """Take documents in: JSON Lines, JSON, Markdown, HTML, text, PDF, DOCX, or an agent's transcripts (OpenAI chat).

    Adding something twice does nothing. A bad file or line is refused with its reason, and the rest goes on.
    """
    from pipelines.inbox.intake import take

    settings = _settings(
        source=source,
        effective=_day(effective),
        supersedes=tuple(supersedes or ()),
        route=route,
        format=format_,
        most_characters=most_characters,
        with_system=with_system,
    )
    taken = take(path, settings, sys.stdin.buffer)
    with InboxStore(work_dir / INBOX_FILE) as store:
        added = store.add(taken.documents)
        unknown = store.unknown_targets()
    _tell_added(len(added.new), len(added.known), taken)
    for name in (*added.new, *added.known):
        for target in unknown.get(name, ()):
            sys.stdout.write(f"Note: {name} supersedes {target!r}, which is not in the inbox.\n")
    _next("list", work_dir)


@app.command("list")
def list_documents(work_dir: _WorkDir = Path(".preceptor")) -> None:
    """List what is in the inbox, in the order of arrival."""
    from rich.console import Console
    from rich.text import Text

    from pipelines.report import counted, plain_table

    with _opened(work_dir) as store:
        documents, statuses = store.documents(), _statuses(store)
    table = plain_table(
        title=f"Inbox of {work_dir}: {counted(len(documents), 'document')}",
        caption="Questions: for rewards + for comparisons alone. Without any, a question writer writes some.",
    )
    table.add_column("Id", no_wrap=True)
    table.add_column("Title", overflow="fold")
    table.add_column("Source", overflow="fold")
    table.add_column("Holds from", no_wrap=True)
    table.add_column("Questions", justify="right", no_wrap=True)
    table.add_column("Status", overflow="fold", min_width=16)  # an id is not broken
    for each in documents:
        day = "" if each.effective is None else each.effective.isoformat()
        status = statuses.get(each.id, "in force")
        table.add_row(*map(Text, (each.id, each.title, each.source, day, _count(each), status)))
    Console().print(table)
    aside = [name for name, status in statuses.items() if status.startswith("set aside")]
    if documents:
        _next(f"release {aside[0]}" if aside else f"show {documents[-1].id}", work_dir)
    else:
        _next("add FILE", work_dir)


@app.command("show")
def show(
    document: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")],
    work_dir: _WorkDir = Path(".preceptor"),
) -> None:
    """Show one document with its questions."""
    with _opened(work_dir) as store:
        found = store.find(document)
        status = _statuses(store).get(document, "in force")
    lines = [
        ("Id", found.id),
        ("Title", found.title),
        ("Source", found.source),
        ("Sender's id", found.name),
        ("Holds from", "" if found.effective is None else found.effective.isoformat()),
        ("Supersedes", ", ".join(found.supersedes)),
        ("Route", found.route or ""),
        ("Status", status),
    ]
    sys.stdout.write("".join(f"{name + ':':<12} {value}\n" for name, value in lines if value))
    sys.stdout.write(f"\n{found.text}\n")
    for heading, questions in (("Questions", found.questions), ("For comparisons alone", found.held_out_questions)):
        if questions:
            sys.stdout.write(f"\n{heading}:\n" + "".join(f"- {q.question} {q.answer}\n" for q in questions))


@app.command("release")
def release(
    documents: Annotated[list[str], typer.Argument(metavar="ID...", help="As `list` shows them.")],
    work_dir: _WorkDir = Path(".preceptor"),
) -> None:
    """Let documents of a rejected night be learned again."""
    with _opened(work_dir) as store:
        released = store.release(documents)
    for name in dict.fromkeys(documents):
        told = "will be learned again." if name in released else "was not set aside."
        sys.stdout.write(f"{name} {told}\n")
    _next("list", work_dir)


def _settings(**fields: object) -> IntakeSettings:
    """Return the settings; what is out of range is refused in the words of the command line."""
    from pydantic import ValidationError

    from pipelines.inbox.intake import IntakeSettings

    try:
        return IntakeSettings.model_validate(fields)
    except ValidationError as error:
        wrong = [f"--{str(m['loc'][0]).replace('_', '-')}: {m['msg']}, got {m['input']!r}" for m in error.errors()]
        raise ConfigError(f"inbox add: {'; '.join(wrong)}") from error


def _day(value: str | None) -> datetime.date | None:
    try:
        return None if value is None else datetime.date.fromisoformat(value)
    except ValueError as error:
        raise ConfigError(f"--effective: got {value!r}, allowed is a day such as 2026-11-30.") from error


def _opened(work_dir: Path) -> InboxStore:
    """Return the store of a work directory that has one.

    Raises:
        InputError: It has none; reading makes no file.
    """
    path = work_dir / INBOX_FILE
    if not path.is_file():
        raise InputError(
            f"inbox: there is none in '{work_dir}'. Add a document first (`preceptor inbox add FILE`), or give the "
            "right --work-dir."
        )
    return InboxStore(path)


def _statuses(store: InboxStore) -> dict[str, str]:
    """Return in words what keeps documents from being learned, by id; superseded goes before set aside."""
    told = {name: f"set aside: {aside.reason} ({aside.night})" for name, aside in store.aside().items()}
    return told | {old: f"superseded by {new}" for old, new in store.superseded().items()}


def _tell_added(new: int, known: int, taken: Taken) -> None:
    from pipelines.inbox.intake import listing
    from pipelines.report import counted

    already = f" {counted(known, 'document')} known already and left as it was." if known else ""
    sys.stdout.write(f"Added {counted(new, 'document')} from {counted(taken.files, 'file')}.{already}\n")
    for note in taken.notes:
        sys.stdout.write(f"Note: {note}.\n")
    if taken.refused:
        sys.stdout.write(f"Refused {len(taken.refused)}:\n")
        sys.stdout.write("".join(f"  {line}\n" for line in listing(taken.refused)))


def _count(document: InboxDocument) -> str:
    held_out = len(document.held_out_questions)
    return f"{len(document.questions)}+{held_out}" if held_out else str(len(document.questions))


def _next(arguments: str, work_dir: Path) -> None:
    sys.stdout.write(f"Next: preceptor inbox {arguments} --work-dir {shlex.quote(str(work_dir))}\n")
