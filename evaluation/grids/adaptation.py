"""A grid puzzle as a task of the loop: its demonstrations are the document, its test inputs are the questions.

So everything that serves documents serves puzzles: sampling, the bank, rewards, comparisons. What differs is how a
self-edit becomes training data (`student.augmentations`), and that comparisons ask for each output under several views
and vote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from evaluation.errors import InputError
from evaluation.grids.tasks import Grid, GridPair, GridTask, GridTest
from evaluation.grids.text import read_grid, write_grid, write_pairs, write_query
from evaluation.grids.transformations import AS_IT_IS, ORIENTATIONS, Orientation
from evaluation.grids.voting import cell_accuracy, is_solved, vote
from evaluation.tasks import Document, KnowledgeTask, Question

VIEWS: Mapping[str, Orientation] = MappingProxyType({orientation.name: orientation for orientation in ORIENTATIONS})
"""Orientations under which an output can be asked for, by name; undone afterwards."""

ONE_VIEW = (AS_IT_IS.name,)


def as_task(puzzle: GridTask, *, views: Sequence[str] = ONE_VIEW, rewarded: int | None = None) -> KnowledgeTask:
    """Return the task of a puzzle.

    Args:
        puzzle: With the gold outputs of all tests.
        views: Names of the views under which comparisons ask for each output, one after another.
        rewarded: The first so many tests give the rewards and the rest is compared on; None uses all for both.

    Raises:
        InputError: A gold output is not known, or a side would have no test.
    """
    if not puzzle.is_scored:
        raise InputError(
            f"grid task {puzzle.id!r}: the output of a test input is not known, so no reward can be given. Give the "
            "file of solutions (data.solutions_path), or leave the task out."
        )
    asked, compared = puzzle.tests[:rewarded], puzzle.tests[rewarded or 0 :]
    if not asked or not compared:
        raise InputError(
            f"grid task {puzzle.id!r}: got {len(puzzle.tests)} tests, of which {rewarded} are for rewards; allowed is "
            "at least one on each side."
        )
    return KnowledgeTask(
        document=Document(
            id=puzzle.id,
            text=write_pairs(puzzle.demonstrations),
            source=puzzle.source,
            entities=(f"family {puzzle.family}",) if puzzle.family else (),
        ),
        questions=tuple(_question(puzzle, test, AS_IT_IS) for test in asked),
        held_out_questions=tuple(_question(puzzle, test, VIEWS[name]) for test in compared for name in views),
        puzzle=puzzle,
    )


def _question(puzzle: GridTask, test: GridTest, view: Orientation) -> Question:
    assert test.output is not None
    shown = [GridPair(input=view.apply(p.input), output=view.apply(p.output)) for p in puzzle.demonstrations]
    return Question(
        question=write_query(shown, view.apply(test.input)),
        answer=write_grid(view.apply(test.output)),
        phrasing=view.name,
    )


def voted_verdicts(questions: Sequence[Question], answers: Sequence[str]) -> list[bool]:
    """Return for each question whether its output is among the attempts that the views of that output vote for.

    Args:
        questions: Views of an output follow each other, each output with the same views in the same order.
        answers: What the student wrote.
    """
    views = list(dict.fromkeys(question.phrasing for question in questions))
    verdicts: list[bool] = []
    for start in range(0, len(questions), len(views)):
        asked, written = questions[start:][: len(views)], answers[start:][: len(views)]
        predictions = {
            question.phrasing: [_turned_back(text, question.phrasing)]
            for question, text in zip(asked, written, strict=True)
        }
        gold = _turned_back(asked[0].answer, asked[0].phrasing)
        assert gold is not None
        verdicts += [is_solved(vote(predictions), gold)] * len(predictions)
    return verdicts


def cell_accuracies(questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
    """Return for each question the share of the output's cells that the answer has right, in [0, 1]."""
    found = []
    for question, text in zip(questions, answers, strict=True):
        gold = read_grid(question.answer)
        assert gold is not None
        found.append(cell_accuracy(read_grid(text), gold))
    return found


def _turned_back(text: str, view: str) -> Grid | None:
    """Return the grid in a text as it is without the view, or None where it holds none."""
    grid = read_grid(text)
    return None if grid is None else VIEWS[view].undo(grid)
