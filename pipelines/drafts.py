"""Of several drafts of a self-edit, the one that its teacher writes most often.

Self-consistency (arXiv 2203.11171): a model that samples means what it says again and again. It is for self-edits of
which a teacher can write the same one twice, such as specifications; where all drafts differ it takes the first ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evaluation.statistics import known_mean
from pipelines.records import EditRecord, SamplingRecord, edits_by_document
from teacher.gates import first_equal


def most_written(sampling: SamplingRecord, count: int) -> SamplingRecord:
    """Return each document's self-edits by how often they were written, each once.

    Drafts that hold no self-edit come last, in the order in which they were written, so that a document whose drafts
    all fail keeps its reason.

    Args:
        sampling: All drafts.
        count: Self-edits kept of each document, at least 1; fewer where fewer different ones were written.
    """
    kept: list[EditRecord] = []
    for drafts in edits_by_document(sampling.edits).values():
        votes = _votes(drafts)
        ordered = [drafts[place] for place, _ in votes.most_common()]  # of equally many the first one written is first
        ordered += [edit for edit in drafts if edit.edit is None]
        kept += [edit.model_copy(update={"index": place}) for place, edit in enumerate(ordered[:count])]
    return sampling.model_copy(update={"edits": tuple(kept)})


def agreement(drafts: Sequence[EditRecord]) -> float | None:
    """Return the mean share of a document's drafts that say what most of them say, in (0, 1]; None without drafts."""
    return known_mean(
        max(votes.values()) / len(mine) if (votes := _votes(mine)) else None
        for mine in edits_by_document(drafts).values()
    )


def _votes(drafts: Sequence[EditRecord]) -> Counter[int]:
    """Return how often each self-edit was written, by the place of the first draft that says it."""
    places = first_equal([edit.edit for edit in drafts])
    return Counter(place for place in places if drafts[place].edit is not None)
