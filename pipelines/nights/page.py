"""The morning page: one self-contained HTML file a night, readable on a phone. No script, nothing is fetched."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.statistics import known_mean
from pipelines.nights.results import NightResult
from pipelines.records import CandidateRecord

if TYPE_CHECKING:
    from jinja2 import Template

PAGE = "morning.html"
_HEADLINES = {
    "promoted": "The new student is in use.",
    "held": "Nothing is shown to be wrong, but not enough is shown for a promotion. The student in use stays.",
    "rejected": "Something is wrong. The student in use stays, and the documents are set aside.",
}


def write_page(result: NightResult, directory: Path) -> Path:
    """Write the page of a night into a directory and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / PAGE
    path.write_text(page_of(result), encoding="utf-8")
    return path


def page_of(result: NightResult) -> str:
    """Return the page of a night as HTML; whatever documents and self-edits hold is shown as text."""
    edits: dict[str, list[CandidateRecord]] = {}
    for candidate in result.candidates:
        edits.setdefault(candidate.edit.document_id, []).append(candidate)
    checks = () if result.gate is None else result.gate.checks
    update = result.update
    return _template().render(
        r=result,
        headline=_HEADLINES.get(result.outcome, ""),
        trouble=[check for check in checks if check.verdict != "pass"],
        earlier_before=known_mean([group.before for group in result.groups]),
        earlier_after=known_mean([group.after for group in result.groups]),
        minutes=_duration(sum(result.seconds.values())),
        tokens=f"{0 if update is None else update.tokens:,}",
        edits=edits,
        titles={document.id: document.title for document in result.new},
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipelines.nights", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals |= {"pc": _percent, "points": _points, "way": _way, "width": _width}
    return environment.get_template("page.html.j2")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}"


def _width(share: float | None) -> str:
    return f"{100 * min(1.0, max(0.0, share or 0.0)):.1f}"


def _way(before: float | None, after: float | None) -> str:
    """Return how a change is coloured; under half a point it is none."""
    if before is None or after is None or abs(after - before) < 0.005:
        return ""
    return "up" if after > before else "down"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
