"""`preceptor inbox add` and `release`; `pipelines.adapt_student.queue` has the commands that know what nights did."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from evaluation.common.errors import InputError
from pipelines.inbox.documents import MAX_TEXT_CHARACTERS, Route
from pipelines.inbox.intake import DEFAULT_CHARACTERS, MIN_CHARACTERS, Intake, listing, named
from pipelines.inbox.interactions import InteractionStore
from pipelines.inbox.readers import Format
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.inbox.worker import ReadingLimits
from pipelines.process import WorkDir, preceptor
from pipelines.reports.format import counted
from pipelines.terminal import printable

app = typer.Typer(
    help="Documents that arrive during the day and are learned at night.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_MAX_PATHS = 20
"""Paths whose results, and files whose warnings, are shown one by one."""


@app.command("add")
def add(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|DIR|-...", help="What to read; - is standard input.")],
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
    keep_both: Annotated[
        bool, typer.Option("--keep-both", help="Changed files: keep the former version in force too.")
    ] = False,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of the night, for its limits.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="List every refused file and row.")] = False,
) -> None:
    """Add documents: PDF, office files, mail, web pages, Markdown, text, tables, transcripts of chats, or JSON Lines.

    Adding a document twice changes nothing; a changed file supersedes its former version. A bad file or line is skipped
    with a reason, and the rest is added.
    """
    day, root = None if effective is None else effective.date(), work_dir.resolve().parent
    replaced, limits = tuple(supersedes or ()), _limits(config)
    intake = Intake(source or None, day, replaced, route, format_, most_characters, root, limits)
    for path in paths:
        documents, skipped = len(intake.documents), len(intake.skipped)
        intake.read(path, typer.get_binary_stream("stdin"))
        if 1 < len(paths) <= _MAX_PATHS or verbose:
            found = counted(len(intake.documents) - documents, "document")
            typer.echo(f"{printable(str(path))}: {found}, {len(intake.skipped) - skipped} skipped")
    if intake.refused and not intake.documents:
        with InboxStore(work_dir / INBOX_FILE) as store:
            store.refuse(intake.files, intake.refused)
    intake.check(verbose=verbose)
    size = most_characters if most_characters != DEFAULT_CHARACTERS else None
    given = {"--source": source, "--format": format_, "--most-characters": size}
    again = [str(part) for option, value in given.items() if value for part in (option, value)]
    with InboxStore(work_dir / INBOX_FILE) as store:
        before = store.superseded()
        store.refuse(intake.files, intake.refused)
        same = store.copies(intake.documents, intake.named_by_path)
        added = store.add(intake.documents, intake.contents, keep_both=keep_both, same=same)
        _show_added(intake, store, added, verbose)
        _show_copies(intake, same)
        _show_changes(intake, store, before, again, work_dir)
    next_step("list", work_dir)


def _limits(config: Path | None) -> ReadingLimits:
    """Return what a file may take, by a night's configuration or by default."""
    if config is None:
        return ReadingLimits()
    from pipelines.settings import AnyFlow, load

    class ReadingFlow(AnyFlow):
        limits: ReadingLimits = ReadingLimits()

    return load(config, ReadingFlow).limits


def _show_added(intake: Intake, store: InboxStore, added: Mapping[str, bool], verbose: bool) -> None:
    """Print what was added, what was not and why, and warnings."""
    new, removed, unknown = sum(added.values()), [*store.removed().keys() & added], store.unknown_targets()
    known = len(added) - new - len(removed)
    in_inbox = f" Already in the inbox: {known}." if known else ""
    typer.echo(f"Added {counted(new, 'document')} from {counted(len(intake.files), 'file')}.{in_inbox}")
    shown = intake.notes if verbose else intake.notes[:_MAX_PATHS]
    for note in shown:
        typer.echo(f"Warning: {printable(note)}.")
    if len(intake.notes) > len(shown):
        typer.echo(f"Warnings about {len(intake.notes) - len(shown)} more files; --verbose lists all.")
    if intake.skipped:
        typer.echo("\n  ".join([f"Skipped {len(intake.skipped)}:", *listing(intake.skipped, verbose)]))
    if removed:
        typer.echo(f"Removed earlier, and added only under another --source: {named(removed)}.")
    for name in added:
        for target in unknown.get(name, ()):
            typer.echo(f"Warning: {name} supersedes '{printable(target)}', which is not in the inbox.")


def _show_copies(intake: Intake, same: Mapping[str, str]) -> None:
    """Print which files hold what the inbox has from others."""
    sources = {each.source: same[each.id] for each in intake.documents if each.id in same}
    if sources:
        held = named(list(dict.fromkeys(sources.values())))
        typer.echo(f"The same content under another path, and one document: {printable(named([*sources]))} ({held}).")


def _show_changes(
    intake: Intake, store: InboxStore, before: Mapping[str, str], again: Sequence[str], work_dir: Path
) -> None:
    """Print what is superseded because its file has changed, and how to keep it; `again` has options of the command."""
    after = store.superseded()
    newly = after.keys() - before.keys() - store.removed().keys()
    gone = {name: file for file, name in store.former(intake.contents) if name in newly}
    if gone:
        files = list(dict.fromkeys(os.path.relpath(intake.root / file.partition("\n")[0]) for file in gone.values()))
        typer.echo(f"Changed: {printable(named(files))}. The present content supersedes {named([*gone])}.")
        next_step(shlex.join(["add", *files, "--keep-both", *again]), work_dir, "To keep both")
    if restored := [name for name in before if name not in after]:
        typer.echo(f"In force again: {named(restored)}.")


@app.command("release")
def release(
    documents: Annotated[list[str], typer.Argument(metavar="ID...", help="As shown by `list`.")],
    work_dir: WorkDir = Path(".preceptor"),
) -> None:
    """Return quarantined documents to the queue for the next night."""
    with open_inbox(work_dir) as store:
        released = store.release(documents)
    for name in dict.fromkeys(documents):
        typer.echo(f"{name}: {'back in the queue' if name in released else 'was not quarantined'}.")
    next_step("list", work_dir)


def open_inbox(work_dir: Path) -> InteractionStore:
    """Return the store of a work directory; InputError if there is none."""
    if not (work_dir / INBOX_FILE).is_file():
        raise InputError(
            f"inbox: there is none in '{work_dir}'. Correct --work-dir, or add a document: "
            f"{preceptor('inbox', 'add', 'FILE', '--work-dir', work_dir)}"
        )
    return InteractionStore(work_dir / INBOX_FILE)


def next_step(arguments: str, work_dir: Path, label: str = "Next") -> None:
    """Print a further command of the inbox."""
    typer.echo(f"{label}: {preceptor('inbox', *shlex.split(arguments), '--work-dir', work_dir)}")
