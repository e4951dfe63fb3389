"""`preceptor inbox list`, `show` and `remove`: what the next night does with each document, or why nothing."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from pipelines.inbox.command import next_step, open_inbox
from pipelines.inbox.intake import listing
from pipelines.inbox.interactions import Stored, summary
from pipelines.inbox.readers.text import one_line
from pipelines.inbox.transcripts import last_question, read_transcript
from pipelines.process import WorkDir, exclusive, preceptor, prepare_process
from pipelines.reports.format import counted
from pipelines.terminal import open_console, printable

if TYPE_CHECKING:
    from pipelines.adapt_student.state import StudentState
    from pipelines.inbox.documents import InboxDocument
    from pipelines.inbox.store import InboxStore

Kind = Literal["waiting", "quarantined", "learned", "memory", "superseded", "removed", "refused", "interaction"]


def _given(because: str) -> str:
    if not because.strip():
        raise typer.BadParameter("is blank; give the reason")
    return because.strip()


Because = Annotated[str, typer.Option("--because", help="Reason; kept with the date and your name.", callback=_given)]
By = Annotated[str, typer.Option("--by", envvar=["USER", "USERNAME"], help="Your name.")]
FlowFile = Annotated[Path | None, typer.Option("--config", help="YAML file of the night, for a store of its own.")]
NIGHT = "NIGHT.yaml"
"""In commands to type: the night's file."""
_MAX_TITLE = 60
_APART: tuple[Kind, ...] = ("removed", "refused", "interaction")
"""Listed with --all, or --status, alone."""


class Status(NamedTuple):
    """Where a document is."""

    kind: Kind
    """Learned: in the weights of the champion; memory: in its external memory; refused: a file that `add` refused;
    interaction: no document, but a chat."""
    reason: str


def champion(work_dir: Path, config: Path | None) -> tuple[int | None, StudentState]:
    """Return version and state of the student in use; ConfigError if nights ran whose store is not known."""
    from pipelines.adapt_student.plan import NIGHTS
    from pipelines.adapt_student.state import StudentState, read_state, student_directory
    from pipelines.lineage.registry import Registry
    from pipelines.lineage.store import has_store, require_store
    from pipelines.settings import AnyFlow, TrackingConfig, load

    tracking = TrackingConfig() if config is None else load(config, AnyFlow).tracking
    if (work_dir / NIGHTS).is_dir():
        require_store(tracking, work_dir)
    elif not has_store(tracking, work_dir):
        return None, StudentState()
    prepare_process()
    registry = Registry.open(tracking, work_dir)
    version = registry.champion("student")
    if version is None:
        return None, StudentState()
    return version, read_state(registry.fetch("student", version, student_directory(work_dir, version)))


def night_results(work_dir: Path) -> list[dict[str, Any]]:
    """Return the results (`NightResult` as JSON) of all nights, in their order."""
    from pipelines.adapt_student.plan import NIGHTS, RESULT

    return [json.loads(file.read_bytes()) for file in sorted((work_dir / NIGHTS).glob(f"night-*/{RESULT}"))]


def statuses(store: InboxStore, work_dir: Path, state: StudentState) -> dict[str, Status]:
    """Return the statuses of all documents by id, removed ones last; `state` is the champion's."""
    quarantined, superseded, removed, notes = store.quarantined(), store.superseded(), store.removed(), store.notes()
    last = [{}, *night_results(work_dir)][-1]  # what it did not add to the champion comes again
    held = {each.task.id: each for each in state.documents}
    tried = {each["id"]: each for each in last.get("new", ())}

    def status(document: InboxDocument) -> Status:
        name, mine = document.id, held.get(document.id)
        by = superseded.get(name, "")
        if by and by not in quarantined:
            still = mine is not None and mine.superseded_by is None and mine.place == "memory"
            return Status("superseded", f"by {by}{'; in memory until the next night' if still else ''}")
        if name in quarantined:
            reason, night = quarantined[name]
            return Status("quarantined", f"in {night}: {reason}" if night else reason)
        if mine is not None and mine.superseded_by:
            return Status("superseded", f"by {mine.superseded_by}")
        note = f"; {notes[name]}" if name in notes else ""
        only = f", for {document.client} alone" if document.client else ""
        if mine is not None and mine.client and not only:
            return Status("waiting", f"for the next night, which opens it to everybody; now for {mine.client} alone")
        if mine is not None and mine.place == "memory":
            return Status("memory", f"since {mine.night}, promoted{only}{note}")
        if mine is not None:
            return Status("learned", f"in {mine.night}, promoted{note}")
        if name in tried:
            failed = tried[name].get("not_learned")
            outcome = "rolled back after" if last["outcome"] == "promoted" else f"{last['outcome']} in"
            outcome = f"not learned in {last['night']}: {failed}" if failed else f"{outcome} {last['night']}"
            return Status("waiting", f"{outcome}; the next night tries again{note}")
        requested = f", to {document.route} as its sender requested" if document.route else ""
        missing = "" if document.questions else "; has no questions yet"
        return Status("waiting", f"for the next night{only}{note or missing or requested}")

    found = {document.id: status(document) for document in store.documents()}
    for name, record in removed.items():
        found[name] = Status("removed", f"by {record.who} on {record.since[:10]}: {record.reason}")
    return found


def list_documents(
    work_dir: WorkDir = Path(".preceptor"),
    status: Annotated[Kind | None, typer.Option("--status", help="Only documents with this status.")] = None,
    source: Annotated[str | None, typer.Option(metavar="GLOB", help="Only sources such as 'notes/*'.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="The latest documents only; 0 lists all.")] = 50,
    all_: Annotated[bool, typer.Option("--all", help="Removed documents, refused files and interactions too.")] = False,
    config: FlowFile = None,
    json_: Annotated[bool, typer.Option("--json", help="Print all that match as JSON, whatever the limit.")] = False,
) -> None:
    """List documents in order of arrival with what the next night does with them, or why nothing; and refused files."""
    from rich.text import Text

    with open_inbox(work_dir) as store:
        store.tend()
        found = statuses(store, work_dir, champion(work_dir, config)[1])
        rows = [_row(each.id, found, each.source, each) for each in store.documents()]
        rows += [_row(name, found, record.source) for name, record in store.removed().items()]
        refused, chats = store.refused(), store.interactions()
    rows += [_chat_row(each) for each in chats]
    rows += [_row(place, {place: Status("refused", reason)}, place) for place, reason in refused.items()]
    rows = [
        row
        for row in rows
        if (row["status"] == status if status else all_ or row["status"] not in _APART)
        and fnmatchcase(row["source"], source or "*")
    ]
    if json_:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    console, counts = open_console(), Counter(row["status"] for row in rows)
    split = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    what = "interaction" if status == "interaction" else "document"
    typer.echo(f"Inbox of {work_dir}: {counted(len(rows), what)}{f' ({split})' if split else ''}")
    latest = rows[-limit:]
    if len(latest) < len(rows):
        typer.echo(f"… and {len(rows) - len(latest):,} more before these; --limit 0 lists all")
    for row in latest:
        questions = "" if row["status"] in _APART else counted(row["questions"], "question")
        facts = filter(None, (row["title"][:_MAX_TITLE], row["source"], row["effective"], questions))
        first = f"{row['id']}  {' · '.join(facts)}"
        for line in (first, f"{'':{len(row['id'])}}  {row['status']}: {row['reason']}"):
            console.print(Text(printable(line)), no_wrap=True, overflow="ellipsis")
    if refused and not (status or all_ or source):
        typer.echo("\n  ".join([f"Refused {len(refused)}, see --status refused:", *listing(refused)]))
    if chats and not (status or all_ or source):
        typer.echo(f"Interactions: {len(chats):,}, see --status interaction.")
    quarantined = [row["id"] for row in rows if row["status"] == "quarantined"]
    following = f"show {latest[-1]['id']}" if latest else "add FILE"
    next_step(f"release {quarantined[0]}" if quarantined else following, work_dir)


def _row(name: str, found: Mapping[str, Status], source: str, document: InboxDocument | None = None) -> dict[str, Any]:
    """Return a document as JSON; None is a removed one."""
    row: dict[str, Any] = {"id": name, "status": found[name].kind, "reason": found[name].reason, "source": source}
    if document is None:
        return row | {"title": "", "effective": None, "questions": 0}
    row |= document.model_dump(mode="json", include={"title", "name", "effective", "supersedes", "route"})
    return row | {"questions": len(document.questions), "held_out_questions": len(document.held_out_questions)}


def _chat_row(stored: Stored) -> dict[str, Any]:
    """Return an interaction as JSON."""
    each = stored.interaction
    status = Status("interaction", summary(stored))
    row = _row(each.id, {each.id: status}, f"chat of {each.client}") | {"title": one_line(last_question(each.messages))}
    facts = {"arrived", "expires", "client", "version", "thumb", "correction", "redacted"}
    return row | each.model_dump(mode="json", include=facts) | {"document": stored.document}


def show(
    document: Annotated[str, typer.Argument(metavar="ID", help="As shown by `list`.")],
    work_dir: WorkDir = Path(".preceptor"),
    config: FlowFile = None,
) -> None:
    """Show a document with its questions, or an interaction."""
    with open_inbox(work_dir) as store:
        for stored in store.interactions():
            if stored.interaction.id == document:
                turns = (block.text for block in read_transcript(stored.interaction.messages).blocks)
                typer.echo("\n\n".join(printable(text, "\n\t") for text in (f"Chat {summary(stored)}", *turns)))
                return
        status = statuses(store, work_dir, champion(work_dir, config)[1]).get(document)
        if status is not None and status.kind == "removed":
            typer.echo(f"{document} was removed {printable(status.reason)}")
            return
        found = store.find(document)
        copies = [path for path in store.paths(document) if path != found.source]
    assert status is not None
    lines = {
        "Id": found.id,
        "Title": found.title,
        "Source": found.source,
        "Also in": ", ".join(copies),
        "Sender's id": found.name,
        "Effective": str(found.effective or ""),
        "Supersedes": ", ".join(found.supersedes),
        "Route": found.route or "",
        "Status": f"{status.kind}: {status.reason}",
    }
    typer.echo("".join(f"{name + ':':<12} {printable(value)}\n" for name, value in lines.items() if value))
    typer.echo(printable(found.text, "\n\t"))
    for heading, questions in (("Questions", found.questions), ("Held-out questions", found.held_out_questions)):
        if questions:
            typer.echo(f"\n{heading}:\n" + "\n".join(printable(f"- {q.question} {q.answer}") for q in questions))


def remove(
    documents: Annotated[list[str], typer.Argument(metavar="ID...", help="As shown by `list`.")],
    because: Because,
    who: By = "unknown",
    work_dir: WorkDir = Path(".preceptor"),
    config: FlowFile = None,
) -> None:
    """Erase documents from the inbox and from what `ask` and `serve` look up; a record without their text is kept.

    Of an interaction nothing is kept. A refused file, as `list` names it, is no longer listed.
    """
    with open_inbox(work_dir) as store, exclusive(work_dir):  # no night works on it meanwhile
        version, state = champion(work_dir, config)
        refused = store.refused()
        chats = {each.interaction.id: each.document for each in store.interactions()}
        store.remove(documents, because, who)
    held = {each.task.id: each.place for each in state.documents}
    for name in dict.fromkeys(documents):
        if name in refused:
            typer.echo(f"{printable(name)}: no longer listed as refused.")
            continue
        if name in chats:
            typer.echo(f"{name}: erased." + (f" What it taught stays as {chats[name]}." if chats[name] else ""))
            continue
        typer.echo(f"{name}: removed; its text and questions are erased from the inbox.")
        if held.get(name) == "memory":
            typer.echo("  From now on `ask` and `serve` leave it out of the memory of every version.")
        learned = learned_versions(work_dir, name)
        if version is not None and held.get(name) == "weights":
            learned.setdefault(version, state.parent)
        if learned:
            command = preceptor(
                "forget", name, "--because", because, "--config", config or NIGHT, "--work-dir", work_dir
            )
            numbers = ", ".join(map(str, sorted(learned)))
            typer.echo(f"  The weights of version {numbers} learned it. To take it out of them, too: {command}")
    typer.echo("Files of earlier nights and versions are kept as they are and may hold the text.")
    next_step("list --status removed", work_dir)


def learned_versions(work_dir: Path, name: str) -> dict[int, int | None]:
    """Return the versions whose weights learned a document, with their parents, as the nights' results have it."""
    found: dict[int, int | None] = {}
    for result in night_results(work_dir):
        mine = [each for each in result.get("new", ()) if each["id"] == name and not each.get("not_learned")]
        if any(each.get("place") == "weights" for each in mine) or result.get("parent") in found:
            found[result["version"]] = result.get("parent")
    return found
