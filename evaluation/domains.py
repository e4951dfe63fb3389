"""All domains of tasks, and their `data` sections; to add a domain, write its module and import it here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, TypeAlias, Union

from pydantic import Field

from evaluation.exact_match import first_line
from evaluation.grids.domain import Grids
from evaluation.microgrids.world import MicrogridsData
from evaluation.microworld.world import MicroworldData, microworld_split
from evaluation.sources.files import HuggingFaceData, JsonLinesData, SquadData, load_tasks
from evaluation.tasks import DataSplit, Domain, KnowledgeTask, Split, split_tasks


class Knowledge(Domain):
    """Documents with questions; the lines of a self-edit are the training data."""

    name = "knowledge"
    sections = (JsonLinesData, SquadData, HuggingFaceData, MicroworldData)
    baselines = Domain.baselines | {
        *("equal_tokens", "oracle", "mixed_prompts", "active_reading", "ask_first"),
        *("context_distillation", "own_questions", "in_context", "retrieval"),
    }

    def load(self, data: JsonLinesData | SquadData | HuggingFaceData | MicroworldData) -> Split:
        """Return the documents; see `Domain.load`."""
        if isinstance(data, MicroworldData):
            return microworld_split(data)
        return split_tasks(
            load_tasks(data), development=data.development_documents, test=data.test_documents, seed=data.split_seed
        )

    def answer_in(self, text: str) -> str:
        """Return the first line: base models continue with further questions."""
        return first_line(text)


KNOWLEDGE = Knowledge()
GRIDS = Grids(MicrogridsData)

DOMAINS: Mapping[str, Domain] = {each.name: each for each in tuple(vars().values()) if isinstance(each, Domain)}
"""By name."""

if TYPE_CHECKING:
    DataConfig: TypeAlias = DataSplit
else:
    _SECTIONS = tuple(section for domain in DOMAINS.values() for section in domain.sections)
    DataConfig = Annotated[Union[_SECTIONS], Field(discriminator="type")]  # noqa: UP007
"""Any `data` section, discriminated by `type`."""


def domain_of(found: KnowledgeTask | DataSplit) -> Domain:
    """Return the domain of a task or of a `data` section."""
    return DOMAINS[found.domain]


def load_split(data: DataSplit) -> Split:
    """Return the tasks of a `data` section, split; see `Domain.load`."""
    return domain_of(data).load(data)
