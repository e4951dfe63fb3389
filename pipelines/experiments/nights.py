"""Simulated nights on the micro-world, with ablations of replay, gate and memory.

`python -m pipelines.experiments.nights configs/nights-demo.yaml`; the same command resumes a killed run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.microworld.world import NightDocument, draw_nights
from evaluation.statistics import known_mean
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.process import flow_process
from pipelines.reports.format import markdown_table, percent
from pipelines.settings import load
from pipelines.terminal import plain_errors

if TYPE_CHECKING:
    from pipelines.adapt_student.page import NightResult

ARMS: dict[str, tuple[str, ...]] = {
    "full": (),
    "no replay": ("replay={documents: 0, general: 0}", "gate=null"),
    "no gate": ("gate=null",),
    "no memory": ("routing={changing: weights}", "memory.least_score=1000"),
}
"""Overrides of the night's configuration. Without replay the gate would hold every night and hide the forgetting."""
DOCUMENTS = 4
"""New documents before each night."""


def as_delivered(document: NightDocument) -> InboxDocument:
    """Return a document of the simulation as delivered to the inbox."""
    task = document.task
    return InboxDocument(
        title=task.document.title,
        text=task.document.text,
        source=task.document.source,
        name=task.id,
        effective=document.effective,
        supersedes=document.supersedes,
        questions=task.questions,
        held_out_questions=task.held_out_questions,
        entities=task.document.entities,
    )


def run_arm(config: Path, overrides: Sequence[str], nights: int, work_dir: Path, seed: int) -> list[NightResult]:
    """Run the nights of one arm that have no result yet, and return all results.

    Two documents supersede earlier ones; on one night just after half of them all documents are wrong.
    """
    from pipelines.adapt_student.flow import adapt_student
    from pipelines.adapt_student.page import NightResult
    from pipelines.adapt_student.plan import NIGHTS, RESULT

    drawn = draw_nights(nights, DOCUMENTS, seed, superseding=(nights // 2 - 1, nights - 2), poisoned=poisoned(nights))
    results = []
    for number, documents in enumerate(drawn):
        done = work_dir / NIGHTS / night_name(number) / RESULT
        if done.is_file():
            results.append(NightResult.model_validate_json(done.read_bytes()))
            continue
        with InboxStore(work_dir / INBOX_FILE) as inbox:
            inbox.add(map(as_delivered, documents))
        results.append(adapt_student(str(config), list(overrides), str(work_dir)))
    return results


def poisoned(nights: int) -> int | None:
    """Return the index of the night of wrong documents; None for fewer than 4 nights."""
    return nights // 2 + 1 if nights > 3 else None


def night_name(number: int) -> str:
    """Return the name of the night with an index."""
    return f"night-{number + 1:04d}"


def known_after(result: NightResult) -> dict[str, float]:
    """Return the champion's accuracy after a night, by the night that its documents are from."""
    if result.outcome != "promoted":
        return {group.night: group.before for group in result.groups if group.before is not None}
    groups = {group.night: group.after for group in result.groups} | {result.night: result.new_after}
    return {night: accuracy for night, accuracy in groups.items() if accuracy is not None}


def arm_row(name: str, results: Sequence[NightResult]) -> list[str]:
    """Return an arm's row of the table; wrong documents are excluded from what is kept."""
    wrong, last = poisoned(len(results)), results[-1]
    then: dict[str, float] = {}
    for result in results:
        then = known_after(result) | then  # the first one is right after the documents' own night
    now = {night: value for night, value in known_after(last).items() if wrong is None or night != night_name(wrong)}
    before, after = known_mean(then[night] for night in now), known_mean(now.values())
    kept = after / before if before and after is not None else None
    probes = last.probes_after if last.outcome == "promoted" else last.probes_before
    outcomes = [result.outcome for result in results]
    counts = [str(outcomes.count(outcome)) for outcome in ("promoted", "held", "rejected")]
    fate = "-" if wrong is None else outcomes[wrong]
    return [name, *counts, fate, *map(percent, (before, after, kept, last.probes_base, probes))]


@plain_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the arms and print their table."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.experiments.nights", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file of the night")
    parser.add_argument("--nights", type=int, choices=range(2, 31), default=10, metavar="N", help="of each arm [10]")
    parser.add_argument("--arm", choices=list(ARMS), action="append", help="one arm only; repeatable")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override; repeatable")
    parser.add_argument("--work-dir", type=Path, default=Path(".preceptor/simulated"), help="a directory for each arm")
    given = parser.parse_args(arguments)
    from pipelines.adapt_student.config import NightConfig

    seed, rows = load(given.config, NightConfig, given.set).seed, []
    with flow_process(given.work_dir):
        for name in given.arm or ARMS:
            place = given.work_dir / name.replace(" ", "-")
            rows.append(arm_row(name, run_arm(given.config, (*given.set, *ARMS[name]), given.nights, place, seed)))
    heads = ["arm", "promoted", "held", "rejected", "poisoned night", "after own night, %", "after last night, %"]
    heads += ["kept, %", "probes of the base, %", "probes, %"]
    print(markdown_table(heads, rows))


if __name__ == "__main__":
    main()
