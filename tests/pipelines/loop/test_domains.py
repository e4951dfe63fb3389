"""The domain's part in sampling: what a parsed self-edit keeps."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.grids.augmentations import AugmentationSpec
from evaluation.grids.domain import as_task
from pipelines.loop.teacher import sample_from
from teacher.samplers.sampler import Completion
from teacher.self_edit import Implication, SelfEdit
from tests.evaluation.grids.factories import mirror_task

TEXT = 'The rule turns rows.\n{"orientations": "flip"}'


class Writes:
    """Writes the same text for every prompt."""

    max_prompt_tokens = None

    def close(self) -> None:
        pass

    def count_tokens(self, prompt: str) -> int:
        return 0

    def sample(self, prompts: Sequence[str], *, n: int, seed: int) -> list[list[Completion]]:
        return [[Completion(TEXT, (), "stop")] * n for _ in prompts]


def test_lines_beside_a_specification_are_dropped_where_it_stands_alone() -> None:
    task = as_task(mirror_task(((1, 2),)))
    knowledge = task.model_copy(update={"domain": "knowledge"})
    alone, both = (sample_from(Writes(), [""], [one], 1, 0).edits[0].edit for one in (task, knowledge))
    assert alone == SelfEdit(augmentations=AugmentationSpec(orientations="flip"))
    assert both is not None
    assert both.implications == (Implication(text="The rule turns rows."),)
