"""Grid tasks as a domain: the demonstrations are the document, the test inputs are the questions.

A self-edit's specification is expanded to the training data that it makes of the demonstrations. Comparisons ask for
each output under several views, turn the answers back, and vote on two attempts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from evaluation.common.errors import InputError
from evaluation.grids.arc import load_arc
from evaluation.grids.augmentations import AugmentationSpec, build_examples, most_examples
from evaluation.grids.grids import (
    Grid,
    GridPair,
    GridTask,
    GridTest,
    cell_accuracy,
    output_spans,
    read_grid,
    read_pairs,
    vote,
    write_grid,
    write_pairs,
    write_query,
)
from evaluation.grids.transformations import AS_IT_IS, ORIENTATIONS, Orientation
from evaluation.sources.config import EmbeddedData, LocalData, SampledData
from evaluation.sources.rows import sample_documents
from evaluation.tasks import (
    DataSplit,
    Document,
    Domain,
    Edit,
    Expansion,
    KnowledgeTask,
    Question,
    Split,
    Verdicts,
    lines_of,
    split_tasks,
)

VIEWS: Mapping[str, Orientation] = MappingProxyType({orientation.name: orientation for orientation in ORIENTATIONS})
"""Orientations under which an output can be asked for, by name; undone afterwards."""
_DEMONSTRATIONS = 4
"""Pairs of a task of the micro-grids, and assumed of one of ARC; most have 2 to 5."""


def _known_views(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value) or not set(value) <= set(VIEWS):
        raise ValueError(f"allowed are views that differ, of {', '.join(VIEWS)}")
    return value


Views = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_known_views)]
"""Orientations of a grid: turned counterclockwise, after mirroring left to right; `mirror-turn-90` is the transpose."""


class GridData(DataSplit):
    """Grid tasks; a document is a task's demonstrations."""

    domain: ClassVar[str] = "grids"
    views: Views = (AS_IT_IS.name,)
    """Orientations under which comparisons ask for each output; the grader `domain` votes on them."""


class ArcData(SampledData, LocalData, GridData):
    """ARC's JSON: a file of challenges or of one task, or a directory of files of one task."""

    type: Literal["arc"] = "arc"
    solutions_path: Path | None = None
    """The file with the test outputs of a file of challenges; None where they are in `path`."""


class MicrogridsData(EmbeddedData, GridData):
    """Tasks of the micro-grids (`evaluation.microgrids`); the test has families of rules that no teacher learns on."""

    type: Literal["microgrids"] = "microgrids"
    train_documents: int = Field(default=132, ge=1, le=100_000)
    """Tasks that rewards are earned on, in [1, 100000]; families take turns."""
    development_documents: int = Field(default=22, ge=0, le=10_000)
    """Tasks to make choices on, in [0, 10000]."""
    test_documents: int = Field(default=112, ge=1, le=10_000)
    """Tasks to compare variants on, in [1, 10000]."""
    rewarded_tests: int = Field(default=8, ge=1, le=64)
    """Test inputs of a task that rewards are earned on, in [1, 64]."""
    compared_tests: int = Field(default=8, ge=1, le=64)
    """Further test inputs of a task, which comparisons ask, in [1, 64]."""


_PROMPT = """\
Below are pairs of grids. One rule makes each output from its input. A small model will be trained on these pairs, each
asked for in turn with the others shown, and must then apply the rule to new inputs. Choose how it is trained.

{passage}

Answer with one JSON object and nothing else:
{"augmentations": {"orientations": ..., "colourings": ..., "permute_demonstrations": ..., "leave_out": ...},
 "training": {"learning_rate": ..., "epochs": ..., "loss_on": ...}}
- orientations: "none", "mirror" (left to right), "flip" (top to bottom), "transpose", "turns" or "all": in which of
  these everything is shown once more. Choose those under which the rule stays the same.
- colourings: 0 to 16: how many times everything is shown once more in other colours. 0 if the rule is about colours.
- permute_demonstrations: true or false. leave_out: 1 or 2; 2 makes more and shorter examples.
- learning_rate: 0.000001 to 0.1. epochs: 1 to 100. loss_on: "answer", "outputs" or "all".
- The training may take at most {budget} steps in all; more is refused.
"""


class Grids(Domain):
    """Few-shot grid tasks."""

    name = "grids"
    sections = (ArcData, MicrogridsData)
    # The micro form is the one that the embedded teacher was pretrained on; it must not change by a character.
    prompts = MappingProxyType({"grid-spec": _PROMPT, "micro-grid-spec": "{passage}\nSteps: {budget}\nRule: "})
    baselines = Domain.baselines | {"specs"}
    grades = True
    spec_alone = True
    shows_document = True

    def load(self, data: ArcData | MicrogridsData) -> Split:
        """Return the tasks; see `Domain.load`."""
        if isinstance(data, MicrogridsData):
            return _drawn(data)
        found = load_arc(data.path, data.solutions_path)
        unknown = [task.id for task in found if any(test.output is None for test in task.tests)]
        if unknown:
            raise InputError(
                f"{data.path}: the test outputs of {len(unknown)} of {len(found)} tasks are not known, the first is "
                f"{unknown[0]!r}, so no reward can be given. Name the file of solutions in data.solutions_path."
            )
        tasks = [as_task(task, data.views) for task in sample_documents(found, data)]
        return split_tasks(
            tasks, development=data.development_documents, test=data.test_documents, seed=data.split_seed
        )

    def expand(self, task: KnowledgeTask, edit: Edit, seed: int) -> Expansion:
        """Return the examples that a specification makes of the demonstrations, then the lines beside it.

        Without any specification the lines alone, such as the bare demonstrations, are trained on.
        """
        written = tuple(line._replace(outputs=output_spans(line.text)) for line in lines_of(edit))
        if edit.augmentations is None and edit.training is None:
            return Expansion(written)
        examples = build_examples(read_pairs(task.document.text), edit.augmentations or AugmentationSpec(), seed)
        return examples._replace(lines=(*examples.lines, *written))

    def count_lines(self, data: ArcData | MicrogridsData, augmentations: AugmentationSpec | None) -> int:
        """Return the most examples that a specification makes."""
        return most_examples(augmentations or AugmentationSpec(), _DEMONSTRATIONS)

    def grade(self, questions: Sequence[Question], answers: Sequence[str]) -> Verdicts:
        """Return for each view of an output whether one of two attempts is right, and the share of its cells.

        Args:
            questions: Views of an output follow each other, each output with the same views in the same order.
            answers: As the student wrote them.
        """
        views = len(dict.fromkeys(question.phrasing for question in questions))
        correct: list[bool] = []
        for start in range(0, len(questions), views):
            asked, written = questions[start:][:views], answers[start:][:views]
            attempts = vote([_turned_back(text, q.phrasing) for q, text in zip(asked, written, strict=True)])
            correct += [_turned_back(asked[0].answer, asked[0].phrasing) in attempts] * views
        pairs = zip(questions, answers, strict=True)
        return Verdicts(tuple(correct), tuple(_cells(question.answer, text) for question, text in pairs))

    def check(self, data: ArcData | MicrogridsData, grader: str | None, baselines: Collection[str]) -> None:
        """Refuse views that nothing puts together; see `Domain.check`."""
        super().check(data, grader, baselines)
        if len(data.views) > 1 and grader != "domain":
            raise ValueError(
                f"data.views: got {len(data.views)} views, which only the grader domain puts together; set "
                "grading.grader.type to it, or leave one view"
            )


GRIDS = Grids()


def _drawn(data: MicrogridsData) -> Split:
    """Return tasks of the micro-grids; those of the test are of all families."""
    from evaluation.microgrids.world import ADAPTED, TESTED, draw_tasks

    def side(name: str, families: tuple[str, ...], count: int) -> tuple[KnowledgeTask, ...]:
        tests = data.rewarded_tests + data.compared_tests
        drawn = draw_tasks(name, families, count, data.split_seed, demonstrations=_DEMONSTRATIONS, tests=tests)
        return tuple(as_task(task, data.views, data.rewarded_tests) for task in drawn)

    return Split(
        side("train", ADAPTED, data.train_documents),
        side("development", ADAPTED, data.development_documents),
        side("test", TESTED, data.test_documents),
    )


def as_task(task: GridTask, views: Sequence[str] = (AS_IT_IS.name,), rewarded: int | None = None) -> KnowledgeTask:
    """Return a grid task, its gold outputs known, as a document with questions.

    Args:
        task: With at least one test, or with more than are rewarded.
        views: Names of the views under which comparisons ask for each output, one after another.
        rewarded: The first so many tests give the rewards and the rest is compared on; None uses all for both.
    """
    return KnowledgeTask(
        document=Document(
            id=task.id,
            text=write_pairs(task.demonstrations),
            source=task.source,
            entities=(f"family {task.family}",) if task.family else (),
        ),
        questions=tuple(_question(task, test, AS_IT_IS) for test in task.tests[:rewarded]),
        held_out_questions=tuple(
            _question(task, test, VIEWS[name]) for test in task.tests[rewarded or 0 :] for name in views
        ),
        domain="grids",
        group=task.family,
    )


def _question(task: GridTask, test: GridTest, view: Orientation) -> Question:
    assert test.output is not None
    shown = [GridPair(input=view.apply(p.input), output=view.apply(p.output)) for p in task.demonstrations]
    return Question(
        question=write_query(shown, view.apply(test.input)),
        answer=write_grid(view.apply(test.output)),
        phrasing=view.name,
    )


def _turned_back(text: str, view: str) -> Grid | None:
    """Return the grid in a text as it is without the view, or None where it holds none."""
    grid = read_grid(text)
    return None if grid is None else VIEWS[view].undo(grid)


def _cells(answer: str, text: str) -> float:
    gold = read_grid(answer)
    assert gold is not None
    return cell_accuracy(read_grid(text), gold)
