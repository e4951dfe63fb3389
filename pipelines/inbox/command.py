"""`preceptor inbox`: add, list, show and release documents. Nothing heavy is imported."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from evaluation.common.errors import InputError
from pipelines.inbox.documents import Route
from pipelines.inbox.intake import MOST_CHARACTERS, IntakeSettings, listing, take
from pipelines.inbox.readers import Format
from pipelines.inbox.store import INBOX_FILE, InboxStore

app = typer.Typer(
    help="Documents that arrive during the day and are learned at night.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_WorkDir = Annotated[Path, typer.Option("--work-dir", help="Directory for records, adapters and the embedded stores.")]
_Most = Annotated[int, typer.Option(min=200, max=100_000, help="Split documents that are longer than this.")]


@app.command("add")
def add(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR|-", help="What to read; - is standard input.")],
    work_dir: _WorkDir = Path(".preceptor"),
    source: Annotated[str | None, typer.Option(help="Source of the documents [the files' paths].")] = None,
    effective: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Day from which they hold.")] = None,
    supersedes: Annotated[list[str] | None, typer.Option(help="Id or source that they replace; repeatable.")] = None,
    route: Annotated[Route | None, typer.Option(help="Where they go [decided by the night].")] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="Format [by the names; jsonl for -].")] = None,
    most_characters: _Most = MOST_CHARACTERS,
    with_system: Annotated[bool, typer.Option("--with-system", help="Keep system prompts of transcripts.")] = False,
) -> None:
    """Add documents: JSON Lines, JSON, Markdown, HTML, text, PDF, DOCX, or an agent's transcripts (OpenAI chat).

    Adding something twice does nothing. A bad file or line is refused with its reason, and the others are added.
    """
    from pipelines.reports.format import counted

    settings = IntakeSettings(
        source=source or None,
        effective=None if effective is None else effective.date(),
        supersedes=tuple(supersedes or ()),
        route=route,
        format=format_,
        most_characters=most_characters,
        with_system=with_system,
    )
    taken = take(path, settings, typer.get_binary_stream("stdin"))
    with InboxStore(work_dir / INBOX_FILE) as store:
        added, unknown = store.add(taken.documents), store.unknown_targets()
    known = f" {counted(len(added.known), 'document')} known already and left as it was." if added.known else ""
    typer.echo(f"Added {counted(len(added.new), 'document')} from {counted(taken.files, 'file')}.{known}")
    for note in taken.notes:
        typer.echo(f"Note: {note}.")
    if taken.refused:
        typer.echo("\n  ".join([f"Refused {len(taken.refused)}:", *listing(taken.refused)]))
    for name in (*added.new, *added.known):
        for target in unknown.get(name, ()):
            typer.echo(f"Note: {name} supersedes {target!r}, which is not in the inbox.")
    _next("list", work_dir)


@app.command("list")
def list_documents(work_dir: _WorkDir = Path(".preceptor")) -> None:
    """List the documents of the inbox in the order of arrival."""
    from rich.console import Console
    from rich.text import Text

    from pipelines.reports.format import counted, plain_table

    with _opened(work_dir) as store:
        documents, statuses = store.documents(), _statuses(store)
    table = plain_table(
        title=f"Inbox of {work_dir}: {counted(len(documents), 'document')}",
        caption="Questions: for rewards + for comparisons alone. Without any, a question writer writes some.",
    )
    for head in ("Id", "Title", "Source", "Holds from", "Questions", "Status"):
        folds = head in ("Title", "Source", "Status")
        table.add_column(head, overflow="fold", no_wrap=not folds, min_width=16 if head == "Status" else None)
    for each in documents:
        day, held_out = "" if each.effective is None else each.effective.isoformat(), len(each.held_out_questions)
        count = f"{len(each.questions)}+{held_out}" if held_out else str(len(each.questions))
        status = statuses.get(each.id, "in force")
        table.add_row(*map(Text, (each.id, each.title, each.source, day, count, status)))
    Console().print(table)
    quarantined = [name for name, status in statuses.items() if status.startswith("quarantined")]
    follows = f"show {documents[-1].id}" if documents else "add FILE"
    _next(f"release {quarantined[0]}" if quarantined else follows, work_dir)


@app.command("show")
def show(
    document: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")],
    work_dir: _WorkDir = Path(".preceptor"),
) -> None:
    """Show one document with its questions."""
    with _opened(work_dir) as store:
        found, status = store.find(document), _statuses(store).get(document, "in force")
    lines = {
        "Id": found.id,
        "Title": found.title,
        "Source": found.source,
        "Sender's id": found.name,
        "Holds from": "" if found.effective is None else found.effective.isoformat(),
        "Supersedes": ", ".join(found.supersedes),
        "Route": found.route or "",
        "Status": status,
    }
    typer.echo("".join(f"{name + ':':<12} {value}\n" for name, value in lines.items() if value))
    typer.echo(found.text)
    for heading, questions in (("Questions", found.questions), ("For comparisons alone", found.held_out_questions)):
        if questions:
            typer.echo(f"\n{heading}:\n" + "\n".join(f"- {q.question} {q.answer}" for q in questions))


@app.command("release")
def release(
    documents: Annotated[list[str], typer.Argument(metavar="ID...", help="As `list` shows them.")],
    work_dir: _WorkDir = Path(".preceptor"),
) -> None:
    """Return quarantined documents to the queue of the next night."""
    with _opened(work_dir) as store:
        released = store.release(documents)
    for name in dict.fromkeys(documents):
        typer.echo(f"{name}: {'back in the queue' if name in released else 'was not quarantined'}.")
    _next("list", work_dir)


def _opened(work_dir: Path) -> InboxStore:
    """Return the store of a work directory that has one; reading makes no file."""
    if not (work_dir / INBOX_FILE).is_file():
        raise InputError(
            f"inbox: there is none in '{work_dir}'. Add a document first (`preceptor inbox add FILE`), or give the "
            "right --work-dir."
        )
    return InboxStore(work_dir / INBOX_FILE)


def _statuses(store: InboxStore) -> dict[str, str]:
    """Return by id what keeps documents from being learned; superseded goes before quarantined."""
    found = {name: f"quarantined: {each.reason} ({each.night})" for name, each in store.quarantined().items()}
    return found | {old: f"superseded by {new}" for old, new in store.superseded().items()}


def _next(arguments: str, work_dir: Path) -> None:
    typer.echo(f"Next: preceptor inbox {arguments} --work-dir {shlex.quote(str(work_dir))}")
