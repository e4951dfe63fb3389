"""The document: what was run, what came of it, and what was to be shown; a part that people write is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation.errors import ConfigError
from evaluation.files import write_atomically
from pipelines.config import RunConfig
from pipelines.evidence import arms as arms_of
from pipelines.evidence import captions, claims, figures, learning_tables, tables
from pipelines.evidence.arms import ArmReading
from pipelines.evidence.over_seeds import Results
from pipelines.report import counted
from pipelines.results import RunResult

OPEN, CLOSE = "<!-- notes -->", "<!-- /notes -->"
"""What stands between them is kept when the document is written again."""

_EMPTY = "\n\n"


class Evidence(NamedTuple):
    """Everything that the document is made from."""

    config: RunConfig
    """Of the first seed."""
    seeds: Results
    """At least one."""
    reference: str
    """What the reference of the arms is called."""
    reference_results: Results
    arms: Mapping[str, Mapping[str, Results]]
    """By heading and name; only those that have a result."""
    missing: Sequence[str]
    """Runs of the plan without a result."""
    dates: tuple[str, str]
    """First and last day on which a run ended."""
    machine: str
    command: str


def kept_notes(path: Path) -> str:
    """Return what stands between the marks of an existing document, marks left out.

    Raises:
        ConfigError: The marks do not come once each and in order, so the part to keep cannot be told.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else OPEN + _EMPTY + CLOSE
    if OPEN not in text and CLOSE not in text:
        return _EMPTY
    start, end = text.find(OPEN), text.find(CLOSE)
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1 or start > end:
        raise ConfigError(
            f"{str(path)!r}: got {text.count(OPEN)} times {OPEN!r} and {text.count(CLOSE)} times {CLOSE!r}, allowed is "
            "once each, in this order. Nothing was written; mend the marks, so that the notes are not lost."
        )
    return text[start + len(OPEN) : end]


def write_document(evidence: Evidence, out: Path) -> tuple[Path, str]:
    """Write `evidence.md` with its pictures, and return its path and its head: the variants and the claims.

    Args:
        evidence: What it says.
        out: Directory of the document; pictures go to `evidence` in it.

    Raises:
        ConfigError: The notes of the existing document cannot be told from the rest.
    """
    path = out / "evidence.md"
    notes = kept_notes(path)
    compared = {
        heading: arms_of.compare_arms(evidence.reference_results, found) for heading, found in evidence.arms.items()
    }
    drawn = {heading: list(found.values()) for heading, found in compared.items()}
    pictures = figures.draw(evidence.seeds, evidence.reference, drawn, out / "evidence")
    links = {name: f"evidence/{picture.name}" for name, picture in pictures.items()}
    found = head(evidence)
    write_atomically(path, render(evidence, found, compared, links, notes))
    return path, found


def head(evidence: Evidence) -> str:
    """Return the tables that matter most: the variants, and what was to be shown."""
    shown = claims.claims(evidence.seeds, evidence.config.teacher.reward.metric)
    return "\n\n".join(
        part
        for part in (
            "## Variants",
            "Accuracy in %, 95 % bootstrap intervals: of a seed over its documents, of all over seeds and documents.",
            tables.variants_table(evidence.seeds),
            tables.few_seeds(len(evidence.seeds)),
            "## What was to be shown",
            claims.claims_table(shown),
        )
        if part
    )


def render(
    evidence: Evidence,
    found: str,
    compared: Mapping[str, Mapping[str, ArmReading]],
    pictures: Mapping[str, str],
    notes: str,
) -> str:
    """Return the whole document.

    Args:
        evidence: What it says.
        found: See `head`.
        compared: See `compare_arms`, by heading.
        pictures: Links by name: `variants`, `budgets`, `rounds`, `arms`.
        notes: Text of people, with the white space around it.
    """
    seeds = evidence.seeds
    images = {name: f"![{captions.PICTURES[name]}]({link})" for name, link in pictures.items()}
    parts = [
        "# Evidence",
        _what_was_run(evidence),
        found,
        images.get("variants", ""),
        f"## Notes\n\n{OPEN}{notes}{CLOSE}",
        *_section("Differences", captions.GAINS, tables.gains_table(seeds)),
        *_section("Equal tokens", captions.BUDGETS, tables.budgets_table(seeds), images.get("budgets", "")),
        *_section("Phrasings of the questions", captions.PHRASINGS, tables.phrasings_table(seeds)),
        *_section("Retention", captions.RETENTION, tables.retention_table(seeds)),
        *_section("Reliability of rewards", captions.RELIABILITY, learning_tables.reliability_table(seeds)),
        *_section("Rounds", learning_tables.rounds_sentence(seeds), images.get("rounds", "")),
        *_section("Self-edits", captions.EDITS, learning_tables.edits_table(seeds)),
        *_section("Another student", captions.TRANSFER, learning_tables.transfer_table(seeds)),
        *_arms(evidence, compared, images.get("arms", "")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, text: str, *parts: str) -> list[str]:
    """Return a section, or nothing where it has neither table nor picture."""
    return [f"## {title}", text, *parts] if any(parts) else []


def _what_was_run(evidence: Evidence) -> str:
    config, results = evidence.config, evidence.seeds
    minutes = [sum(result.seconds.values()) / 60 for result in results.values()]
    first, last = evidence.dates
    documents = sorted({result.documents for result in results.values()})
    codes = sorted({r.code_digest[:12] for r in _all_results(evidence)})
    loop = config.loop
    lines = [
        f"- Runs: `{config.name}`, seeds {', '.join(map(str, results))}; documents, samples and updates differ between "
        f"seeds. {', '.join(map(str, documents))} test documents a seed, which no training saw.",
        f"- Each: {config.teacher.model} learns by {config.teacher.learning.algorithm} for at most "
        f"{counted(loop.rounds, 'round')} of {counted(loop.documents, 'document')} with {config.teacher.samples} "
        f"self-edits each, for the student {config.student.model}; rewards by {config.teacher.reward.metric}.",
        f"- When: {first if first == last else f'{first} to {last}'}; {min(minutes):.1f} to {max(minutes):.1f} minutes "
        "a seed.",
        f"- Where: {evidence.machine}.",
        f"- Code: {', '.join(f'`{code}`' for code in codes)}" + (", not the same in all runs." if codes[1:] else "."),
        f"- Command: `{evidence.command}`",
    ]
    if evidence.missing:
        lines.append(f"- Planned, and without a result yet: {'; '.join(evidence.missing)}.")
    return "\n".join(lines)


def _all_results(evidence: Evidence) -> list[RunResult]:
    groups = [found for arms in evidence.arms.values() for found in arms.values()]
    return [result for found in (evidence.seeds, evidence.reference_results, *groups) for result in found.values()]


def _arms(evidence: Evidence, compared: Mapping[str, Mapping[str, ArmReading]], image: str) -> list[str]:
    if not evidence.reference_results or not any(evidence.arms.values()):
        return []
    seeds = sorted(evidence.reference_results)
    parts = [image, arms_of.arms_caution(seeds, evidence.seeds)]
    for heading, found in evidence.arms.items():
        if found:
            parts += [
                f"### {heading}",
                arms_of.arms_table(evidence.reference, evidence.reference_results, found, compared[heading]),
                arms_of.arms_sentences(evidence.reference, found, compared[heading]),
            ]
    return ["## What each setting is worth", *parts]
