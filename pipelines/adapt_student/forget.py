"""`preceptor forget`: what leaves inbox and memory leaves the weights, too, and probes show whether it is gone.

Versions whose weights learned it are taken out of use, an ordinary night learns the rest again from the last version
before them, and the champion is asked what it should no longer know. Each step may be repeated, and the work directory
says which were taken, so that the same command finishes an erasure that was killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evaluation.common.errors import InputError
from pipelines.adapt_student.queue import NIGHT, Because, By, champion, learned_versions
from pipelines.inbox.command import open_inbox
from pipelines.inbox.corrections import clients_in
from pipelines.process import WorkDir, exclusive, find_optional_config, flow_process, preceptor
from pipelines.reports.format import counted
from pipelines.terminal import open_console

if TYPE_CHECKING:
    from pipelines.adapt_student.config import NightConfig
    from pipelines.adapt_student.state import Erasure
    from pipelines.lineage.registry import Registry
    from pipelines.settings import TrackingConfig

NightFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file of the night, where weights learned it.", callback=find_optional_config),
]


def forget(
    name: Annotated[str, typer.Argument(metavar="CLIENT|SOURCE|ID", help="Name of a key, file, URL, or id.")],
    because: Because,
    who: By = "unknown",
    work_dir: WorkDir = Path(".preceptor"),
    config: NightFile = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a setting; repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, and its cost.")] = False,
) -> None:
    """Erase all of a client, a source or a document: from the inbox, the memory, the rehearsal and the weights.

    Versions whose weights learned it are out of use for good. The rest is learned again by a night that starts from the
    last version before them, and probes ask the new champion. The exit code is 1 if it still answers them better than
    that version, or if weights hold it and there is no --config. The same command finishes one that was killed.
    """
    from pipelines.adapt_student.config import NightConfig
    from pipelines.adapt_student.state import read_erasure, write_erasure
    from pipelines.settings import load

    settings = None if config is None else load(config, NightConfig, set_ or ())
    command = ["forget", name, "--because", because, "--work-dir", work_dir]
    if (left := read_erasure(work_dir)) is not None and not dry_run:
        typer.echo(f"Finishing the erasure of {counted(len(left.documents), 'document')} that was interrupted.")
        _finish(left, settings, config, set_ or (), work_dir, command)
    documents, chats = _meant(name, work_dir)
    erasure = _erasure(documents, because, who, work_dir, config)
    if not documents and not chats:
        if left is not None:
            return
        raise InputError(
            f"forget: got {name!r}, but no document, source or client of chats in {str(work_dir)!r} has this name. "
            "`preceptor inbox list --all` shows them."
        )
    found = f"{counted(len(documents), 'document')} ({', '.join(documents) or 'none'})"
    found += f", {counted(len(chats), 'interaction')}"
    if dry_run:
        typer.echo(f"Nothing was changed. Would be erased from the inbox: {found}.")
        if erasure is not None:
            _show(erasure, settings, work_dir)
        return
    with open_inbox(work_dir) as store, exclusive(work_dir):  # no night works on it meanwhile
        if erasure is not None and (settings is not None or erasure.champion is None):
            write_erasure(erasure, work_dir)
        store.remove([*chats, *documents], because, who)
    typer.echo(f"Erased from the inbox: {found}. `ask` and `serve` leave it out of the memory of every version.")
    if erasure is not None:
        _finish(erasure, settings, config, set_ or (), work_dir, command)
    typer.echo("Files of earlier nights, their MLflow runs and backups are kept as they are and may hold the text.")


def _meant(name: str, work_dir: Path) -> tuple[list[str], list[str]]:
    """Return the ids of documents, also of removed ones that weights learned, and of chats that a name means."""
    with open_inbox(work_dir) as store:
        sources = {each.id: (each.source, *store.paths(each.id)) for each in store.documents()}
        removed = {key: (each.source,) for key, each in store.removed().items()}
        stored = store.interactions()
    documents = [
        key
        for key, mine in {**sources, **removed}.items()
        if name in (key, *mine, *(client for source in mine for client in clients_in(source)))
        if key in sources or learned_versions(work_dir, key)
    ]
    gone = {name, *documents}
    return documents, [each.id for each, document in stored if gone & {each.id, each.client, document}]


def _erasure(documents: Collection[str], because: str, who: str, work_dir: Path, config: Path | None) -> Erasure | None:
    """Return what is to be done about weights that learned some of the documents; None if none did."""
    from pipelines.adapt_student.state import Erasure, student_version
    from pipelines.lineage.registry import Registry

    number, state = champion(work_dir, config)
    mine = {each.task.id for each in state.documents if each.place == "weights"}
    learned: dict[int, int | None] = {}
    held = []
    for name in documents:
        found = learned_versions(work_dir, name)
        if number is not None and name in mine:
            found.setdefault(number, state.parent)
        learned |= found
        held += [name] if found else []
    if not learned:
        return None
    registry = Registry.open(_tracking(config), work_dir)
    usable = {each.version for each in registry.history("student") if not each.erased}
    if not (versions := tuple(sorted(usable & learned.keys()))):
        return None
    clean = number
    while clean is not None and clean in learned:
        clean = learned[clean]
    in_use = number if number in learned else None
    before = student_version(registry, clean, work_dir).state.ids if in_use is not None else frozenset()
    again = tuple(sorted(state.ids - before - {*documents})) if in_use is not None else ()
    return Erasure(
        documents=tuple(held), reason=because, who=who, versions=versions, champion=in_use, clean=clean, again=again
    )


def _tracking(config: Path | None) -> TrackingConfig:
    from pipelines.settings import AnyFlow, TrackingConfig, load

    return TrackingConfig() if config is None else load(config, AnyFlow).tracking


def _show(erasure: Erasure, settings: NightConfig | None, work_dir: Path) -> None:
    """Print what would be done about weights, and its cost."""
    from pipelines.adapt_student.plan import dry_run
    from pipelines.adapt_student.state import student_label
    from pipelines.reports.costs import cost_table, estimate

    typer.echo(f"Out of use for good, with their files deleted: version {', '.join(map(str, erasure.versions))}.")
    if erasure.champion is None:
        typer.echo("None of these is in use: nothing is learned again.")
        return
    again = f"{counted(len(erasure.again), 'document')} that version {erasure.champion} holds"
    typer.echo(f"A night learns again, from {student_label(erasure.clean)}, which answers until then: {again}.")
    if settings is None:
        typer.echo(f"For the cost: --config {NIGHT}")
    elif stages := dry_run(settings, work_dir, erasure).stages:
        open_console().print(cost_table(estimate(stages, settings), settings))


def _finish(
    erasure: Erasure,
    settings: NightConfig | None,
    config: Path | None,
    overrides: Sequence[str],
    work_dir: Path,
    command: Sequence[object],
) -> None:
    """Take the steps of an erasure that are left.

    typer.Exit 1 if weights in use still know what was to be forgotten, also because no file says how to learn the rest.
    """
    from pipelines.adapt_student.state import write_erasure
    from pipelines.lineage.registry import Registry

    numbers = ", ".join(map(str, erasure.versions))
    if erasure.champion is not None and (settings is None or config is None):
        typer.echo(
            f"The weights of version {numbers} learned it and still hold it; version {erasure.champion} is in use. To "
            f"learn the rest again without it, name the night's file: {preceptor(*command, '--config', NIGHT)}",
            err=True,
        )
        raise typer.Exit(1)
    with flow_process(work_dir) if erasure.is_open else exclusive(work_dir):
        registry = Registry.open(_tracking(config), work_dir)
        with open_inbox(work_dir) as store:
            store.remove(erasure.documents, erasure.reason, erasure.who)
        registry.erase("student", erasure.versions, erasure.reason, erasure.clean)
        typer.echo(f"Out of use for good: version {numbers}.")
        if erasure.is_open:
            from pipelines.adapt_student.flow import adapted
            from pipelines.adapt_student.page import night_lines

            result = adapted(str(config), list(overrides), str(work_dir))
            typer.echo("\n".join(night_lines(result, work_dir, config)))
            erasure = erasure.model_copy(update={"learned": True})
            write_erasure(erasure, work_dir)
        if erasure.champion is not None and erasure.gone is None:
            from pipelines.adapt_student.erasure import prove

            assert settings is not None
            erasure = erasure.model_copy(update={"gone": prove(settings, registry, erasure, work_dir)})
            write_erasure(erasure, work_dir)
        _delete_files(registry, erasure, work_dir)
        write_erasure(None, work_dir)
    if erasure.gone is False:
        raise typer.Exit(1)


def _delete_files(registry: Registry, erasure: Erasure, work_dir: Path) -> None:
    """Delete the files of erased versions, in the store and in the work directory."""
    from pipelines.adapt_student.state import student_directory
    from pipelines.loop.update import adapter_dir

    for each in registry.registered("student"):
        if each.version in erasure.versions:
            shutil.rmtree(student_directory(work_dir, each.version), ignore_errors=True)
            shutil.rmtree(adapter_dir(work_dir, each.name), ignore_errors=True)
    registry.delete_files("student", erasure.versions)
    typer.echo(f"Deleted the files of version {', '.join(map(str, erasure.versions))}; their records stay.")
