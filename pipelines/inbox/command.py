"""`preceptor inbox`: add, list, show and release documents."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from evaluation.common.errors import InputError
from pipelines.inbox.documents import MAX_TEXT_CHARACTERS, Route
from pipelines.inbox.intake import DEFAULT_CHARACTERS, MIN_CHARACTERS, Intake, listing
from pipelines.inbox.readers import Format
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.process import WorkDir, preceptor

app = typer.Typer(
    help="Documents that arrive during the day and are learned at night.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_VALID = "valid"


@app.command("add")
def add(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR|-", help="What to read; - is standard input.")],
    work_dir: WorkDir = Path(".preceptor"),
    source: Annotated[str | None, typer.Option(help="Source of the documents [the files' paths].")] = None,
    effective: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Effective date.")] = None,
    supersedes: Annotated[list[str] | None, typer.Option(help="Id or source that they replace; repeatable.")] = None,
    route: Annotated[Route | None, typer.Option(help="Where they go [the night's routing].")] = None,
    format_: Annotated[
        Format | None, typer.Option("--format", help="Format [by file name extension; jsonl for -].")
    ] = None,
    most_characters: Annotated[
        int, typer.Option(min=MIN_CHARACTERS, max=MAX_TEXT_CHARACTERS, help="Split longer documents.")
    ] = DEFAULT_CHARACTERS,
) -> None:
    """Add documents: JSON Lines, JSON, Markdown, HTML, text, PDF, DOCX, or agent transcripts (OpenAI chat format).

    Adding a document twice changes nothing. A bad file or line is skipped with a reason, and the rest is added.
    """
    from pipelines.reports.format import counted

    day = None if effective is None else effective.date()
    intake = Intake(source or None, day, tuple(supersedes or ()), route, format_, most_characters)
    intake.read(path, typer.get_binary_stream("stdin"))
    with InboxStore(work_dir / INBOX_FILE) as store:
        added, unknown = store.add(intake.documents), store.unknown_targets()
    new = sum(added.values())
    known = f" Already in the inbox: {len(added) - new}." if len(added) > new else ""
    typer.echo(f"Added {counted(new, 'document')} from {counted(intake.files, 'file')}.{known}")
    for note in intake.notes:
        typer.echo(f"Warning: {note}.")
    if intake.skipped:
        typer.echo("\n  ".join([f"Skipped {len(intake.skipped)}:", *listing(intake.skipped)]))
    for name in added:
        for target in unknown.get(name, ()):
            typer.echo(f"Warning: {name} supersedes {target!r}, which is not in the inbox.")
    _next("list", work_dir)


@app.command("list")
def list_documents(work_dir: WorkDir = Path(".preceptor")) -> None:
    """List the documents of the inbox in order of arrival."""
    from rich.console import Console
    from rich.text import Text

    from pipelines.reports.format import counted, plain_table

    with _opened(work_dir) as store:
        documents, statuses = store.documents(), _statuses(store)
    table = plain_table(
        title=f"Inbox of {work_dir}: {counted(len(documents), 'document')}",
        caption="Questions: for rewards + held out. If there are none, the night can generate some.",
    )
    for head in ("Id", "Title", "Source", "Effective", "Questions", "Status"):
        folds = head in ("Title", "Source", "Status")
        table.add_column(head, overflow="fold", no_wrap=not folds, min_width=16 if head == "Status" else None)
    for each in documents:
        count = f"{len(each.questions)}+{len(each.held_out_questions)}".removesuffix("+0")
        cells = (each.id, each.title, each.source, str(each.effective or ""), count, statuses.get(each.id, _VALID))
        table.add_row(*map(Text, cells))
    Console().print(table)
    quarantined = [name for name, status in statuses.items() if status.startswith("quarantined")]
    following = f"show {documents[-1].id}" if documents else "add FILE"
    _next(f"release {quarantined[0]}" if quarantined else following, work_dir)


@app.command("show")
def show(
    document: Annotated[str, typer.Argument(metavar="ID", help="As shown by `list`.")],
    work_dir: WorkDir = Path(".preceptor"),
) -> None:
    """Show a document with its questions."""
    with _opened(work_dir) as store:
        found, status = store.find(document), _statuses(store).get(document, _VALID)
    lines = {
        "Id": found.id,
        "Title": found.title,
        "Source": found.source,
        "Sender's id": found.name,
        "Effective": str(found.effective or ""),
        "Supersedes": ", ".join(found.supersedes),
        "Route": found.route or "",
        "Status": status,
    }
    typer.echo("".join(f"{name + ':':<12} {value}\n" for name, value in lines.items() if value))
    typer.echo(found.text)
    for heading, questions in (("Questions", found.questions), ("Held-out questions", found.held_out_questions)):
        if questions:
            typer.echo(f"\n{heading}:\n" + "\n".join(f"- {q.question} {q.answer}" for q in questions))


@app.command("release")
def release(
    documents: Annotated[list[str], typer.Argument(metavar="ID...", help="As shown by `list`.")],
    work_dir: WorkDir = Path(".preceptor"),
) -> None:
    """Return quarantined documents to the queue for the next night."""
    with _opened(work_dir) as store:
        released = store.release(documents)
    for name in dict.fromkeys(documents):
        typer.echo(f"{name}: {'back in the queue' if name in released else 'was not quarantined'}.")
    _next("list", work_dir)


def _opened(work_dir: Path) -> InboxStore:
    """Return the store of a work directory; InputError if there is none."""
    if not (work_dir / INBOX_FILE).is_file():
        raise InputError(
            f"inbox: there is none in '{work_dir}'. Correct --work-dir, or add a document: "
            f"{preceptor('inbox', 'add', 'FILE', '--work-dir', work_dir)}"
        )
    return InboxStore(work_dir / INBOX_FILE)


def _statuses(store: InboxStore) -> dict[str, str]:
    """Return ids -> why documents are not learned; superseded takes precedence over quarantined."""
    found = {name: f"quarantined: {reason} ({night})" for name, (reason, night) in store.quarantined().items()}
    return found | {old: f"superseded by {new}" for old, new in store.superseded().items()}


def _next(arguments: str, work_dir: Path) -> None:
    typer.echo(f"Next: {preceptor('inbox', *arguments.split(), '--work-dir', work_dir)}")
