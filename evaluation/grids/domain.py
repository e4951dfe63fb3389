"""Grid tasks as a domain: demonstrations are the document, test inputs the questions; loading of ARC's files.

A self-edit's specification expands to augmented demonstrations. Comparisons ask for each output under several views,
invert the views, and vote on two attempts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from evaluation.common.errors import InputError
from evaluation.grids import grids
from evaluation.grids.augmentations import AugmentationSpec, build_examples, most_examples
from evaluation.sources.files import read_json
from evaluation.sources.rows import LocalData, Refusals, SampledData
from evaluation.tasks import (
    DataSplit,
    Document,
    Domain,
    Edit,
    Expansion,
    KnowledgeTask,
    Question,
    Split,
    lines_of,
    split_tasks,
)

VIEWS: Mapping[str, grids.Orientation] = MappingProxyType(
    {orientation.name: orientation for orientation in grids.ORIENTATIONS}
)
"""Orientations of queries by name, inverted in the answers."""
DEMONSTRATIONS = 4
"""Demonstrations per micro-grid task, and assumed per ARC task, which mostly has 2 to 5."""


def _known_views(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value) or not set(value) <= set(VIEWS):
        raise ValueError(f"allowed are views that differ, of {', '.join(VIEWS)}")
    return value


Views = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_known_views)]
"""Orientations: left-right mirroring, then counterclockwise turns; `mirror-turn-90` is the transpose."""


class GridData(DataSplit):
    """Grid tasks; a document is a task's demonstrations."""

    domain: ClassVar[str] = "grids"
    views: Views = (grids.IDENTITY.name,)
    """Orientations under which comparisons ask for each output; the grader `domain` votes over them."""

    def draw(self) -> Split:
        """Return the tasks of an embedded world."""
        raise NotImplementedError


class ArcData(SampledData, LocalData, GridData):
    """ARC's JSON: a file of challenges or of one task, or a directory of files of one task.

    The test outputs of `…challenges.json` are in `…solutions.json` beside it, where there is such a file.
    """

    type: Literal["arc"] = "arc"


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
    # The embedded teacher was pretrained on the micro template, which must stay identical.
    prompts = MappingProxyType({"grid-spec": _PROMPT, "micro-grid-spec": "{passage}\nSteps: {budget}\nRule: "})
    baselines = Domain.baselines | {"specs"}
    grades = True
    spec_alone = True
    shows_document = True

    def __init__(self, *embedded: type[GridData]) -> None:
        """Support ARC's files and the sections of embedded worlds."""
        self.sections = (ArcData, *embedded)

    def load(self, data: GridData) -> Split:
        """Return the tasks; see `Domain.load`."""
        if not isinstance(data, ArcData):
            return data.draw()
        beside = data.path.with_name(data.path.name.replace("challenges", "solutions"))
        found = load_arc(data.path, beside if beside != data.path and beside.expanduser().is_file() else None)
        unknown = [task.id for task in found if any(test.output is None for test in task.tests)]
        if unknown:
            raise InputError(
                f"{data.path}: the test outputs of {len(unknown)} of {len(found)} tasks are not known, the first is "
                f"{unknown[0]!r}, so no reward can be given. Put their solutions into a file beside it with "
                "`solutions` in place of `challenges` in its name."
            )
        tasks = [as_task(task, data.views) for task in data.sample(found)]
        return split_tasks(
            tasks, development=data.development_documents, test=data.test_documents, seed=data.split_seed
        )

    def expand(self, task: KnowledgeTask, edit: Edit, seed: int) -> Expansion:
        """Return the examples of a specification, if any, followed by the edit's own lines."""
        written = tuple(line._replace(outputs=grids.output_spans(line.text)) for line in lines_of(edit))
        if edit.augmentations is None and edit.training is None:
            return Expansion(written)
        examples = build_examples(grids.read_pairs(task.document.text), edit.augmentations or AugmentationSpec(), seed)
        return examples._replace(lines=(*examples.lines, *written))

    def count_lines(self, data: GridData, augmentations: AugmentationSpec | None) -> int:
        """Return the maximum number of examples of a specification."""
        return most_examples(augmentations or AugmentationSpec(), DEMONSTRATIONS)

    def grade(self, questions: Sequence[Question], answers: Sequence[str]) -> tuple[bool, ...]:
        """Return for each view of an output whether one of two attempts is correct.

        The views of an output are consecutive, in the same order for every output.
        """
        views = len(dict.fromkeys(question.phrasing for question in questions))
        correct: list[bool] = []
        for start in range(0, len(questions), views):
            asked, written = questions[start:][:views], answers[start:][:views]
            attempts = grids.vote([_inverted(text, q.phrasing) for q, text in zip(asked, written, strict=True)])
            correct += [_inverted(asked[0].answer, asked[0].phrasing) in attempts] * views
        return tuple(correct)

    def check(self, data: GridData, grader: str | None, baselines: Collection[str]) -> None:
        """Refuse several views without a vote; see `Domain.check`."""
        super().check(data, grader, baselines)
        if len(data.views) > 1 and grader != "domain":
            raise ValueError(
                f"data.views: got {len(data.views)} views, over which only the grader domain votes; set "
                "grading.grader.type to domain, or keep one view"
            )


def as_task(
    task: grids.GridTask, views: Sequence[str] = (grids.IDENTITY.name,), rewarded: int | None = None
) -> KnowledgeTask:
    """Return a grid task with known outputs as a document with questions.

    The first `rewarded` tests are for rewards, the others, under each of `views`, for comparisons; None uses all for
    both.
    """
    return KnowledgeTask(
        document=Document(
            id=task.id,
            text=grids.write_pairs(task.demonstrations),
            source=task.source,
            entities=(f"family {task.family}",) if task.family else (),
        ),
        questions=tuple(_question(task, test, grids.IDENTITY) for test in task.tests[:rewarded]),
        held_out_questions=tuple(
            _question(task, test, VIEWS[name]) for test in task.tests[rewarded or 0 :] for name in views
        ),
        domain="grids",
        group=task.family,
    )


def _question(task: grids.GridTask, test: grids.GridTest, view: grids.Orientation) -> Question:
    assert test.output is not None
    shown = [grids.GridPair(input=view.apply(p.input), output=view.apply(p.output)) for p in task.demonstrations]
    return Question(
        question=grids.write_query(shown, view.apply(test.input)),
        answer=grids.write_grid(view.apply(test.output)),
        phrasing=view.name,
        paraphrases=(),
    )


def _inverted(text: str, view: str) -> grids.Grid | None:
    grid = grids.read_grid(text)
    return None if grid is None else VIEWS[view].undo(grid)


class _Test(grids.GridTest):
    model_config = ConfigDict(extra="ignore")


class _Task(BaseModel):
    model_config = ConfigDict(extra="ignore")

    train: list[grids.GridPair] = Field(min_length=1)
    test: list[_Test] = Field(min_length=1)


_SOLUTIONS = TypeAdapter(dict[str, list[grids.CheckedGrid]])


def load_arc(path: Path, solutions: Path | None = None) -> tuple[grids.GridTask, ...]:
    """Return the tasks of ARC's JSON in file order, or by file name for a directory; files may be gzipped.

    - Challenges: `{id: {"train": [{"input", "output"}], "test": [{"input"}]}}`.
    - One task: `{"train": [...], "test": [{"input", "output"}]}`; the id is the file's name.
    - A directory of such task files.

    A file of solutions is `{id: [output, ...]}`, one for each test input.

    Raises:
        InputError: A file cannot be read or is invalid; the message lists all mistakes by JSON path.
    """
    refusals, tasks = Refusals(str(path)), {}
    for name, source, raw in _raw_tasks(path, refusals):
        if task := refusals.parse(name, raw, _Task):
            tasks[name] = grids.GridTask(
                id=name, demonstrations=tuple(task.train), tests=tuple(task.test), source=source
            )
    refusals.check()
    if not tasks:
        raise InputError(f"{path}: holds no task. Give a file of challenges, or a directory of task files '*.json'.")
    return tuple(tasks.values()) if solutions is None else _solved(tasks, solutions)


def _raw_tasks(path: Path, refusals: Refusals) -> Iterator[tuple[str, str, Any]]:
    """Yield id, source and JSON value of each task."""
    if path.expanduser().is_dir():
        for file in sorted(file for file in path.expanduser().iterdir() if file.name.endswith((".json", ".json.gz"))):
            try:
                yield _stem(file), str(file), read_json(file)
            except InputError as error:
                refusals.refuse(file.name, str(error))
        return
    raw = read_json(path)
    if not isinstance(raw, dict):
        refusals.refuse("top level", "must be an object")
    elif {"train", "test"} <= raw.keys():
        yield _stem(path), str(path), raw
    else:
        yield from ((name, f"{path}: {name}", task) for name, task in raw.items())


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".json")


def _solved(tasks: Mapping[str, grids.GridTask], path: Path) -> tuple[grids.GridTask, ...]:
    """Return the tasks with the outputs of a solutions file; refuse missing, surplus and contradictory ones."""
    refusals = Refusals(str(path))
    outputs = refusals.parse_whole(_SOLUTIONS, read_json(path)) or {}
    refusals.check()
    for name in dict.fromkeys((*tasks, *outputs)):
        given, tests = outputs.get(name, []), tasks[name].tests if name in tasks else ()
        if len(given) != len(tests):
            refusals.refuse(name, f"got {len(given)} outputs for {len(tests)} test inputs")
        elif any(test.output not in (None, output) for test, output in zip(tests, given, strict=True)):
            refusals.refuse(name, "contradicts the outputs in the challenge")
    refusals.check()

    def solved(task: grids.GridTask) -> grids.GridTask:
        pairs = zip(task.tests, outputs[task.id], strict=True)
        tests = tuple(grids.GridTest(input=test.input, output=output) for test, output in pairs)
        return task.model_copy(update={"tests": tests})

    return tuple(map(solved, tasks.values()))
