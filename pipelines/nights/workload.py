"""How much work a night is, at most: counted from the configuration, the inbox and what the champion holds.

No model is opened: a token is taken for four characters, and a line of a self-edit has two tokens at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from evaluation.digests import derive_seed
from evaluation.retention import rehearsal_questions, retention_probes
from evaluation.tasks import KnowledgeTask
from pipelines.costs import PASSAGE_TOKENS, QUESTION_TOKENS, UpdateCost, update_cost
from pipelines.nights.ahead import Ahead
from pipelines.nights.config import NightConfig
from pipelines.nights.state import HeldDocument

_CHARACTERS_PER_TOKEN = 4
"""Of English text, whose tokens have about 4.3 to 4.8 in the shipped models."""


class NightWork(NamedTuple):
    """What a night does, at most."""

    self_edits: int
    """To be written, and each tried on a student of its own."""
    tries: UpdateCost
    """All of them together."""
    lines: int
    """Trained on in the night's update; 0 without one."""
    update: UpdateCost
    """The night's."""
    question_answers: int
    """Scored to prove questions, each with its passage and without."""
    try_answers: int
    """Scored for rewards."""
    night_answers: int
    """Scored of the night's student, the champion and the base."""
    passage_tokens: int
    """Read before questions, in proofs and in answers from memory."""

    @property
    def answer_tokens(self) -> int:
        """All that is read to score answers."""
        answers = self.question_answers + self.try_answers + self.night_answers
        return answers * QUESTION_TOKENS + self.passage_tokens


def count_work(config: NightConfig, ahead: Ahead) -> NightWork:
    """Return what a night does, at most.

    Args:
        config: Of the night.
        ahead: What it would find.

    Raises:
        InputError: The file of questions on general knowledge cannot be read.
    """
    weights = to_weights(ahead)
    probes, general = _general(config) if ahead.documents else (0, 0)
    lines, update = _night_update(config, ahead, general) if weights else (0, UpdateCost(0, 0))
    asked, looked_up = _asked(config, ahead)
    proved = _candidates(config)
    return NightWork(
        self_edits=config.writing.edits * len(weights),
        tries=_tries(config, weights),
        lines=lines,
        update=update,
        question_answers=2 * proved * len(ahead.unasked),
        try_answers=_try_answers(config, ahead, probes),
        night_answers=2 * (asked + probes) + probes if ahead.documents else 0,
        passage_tokens=proved * sum(tokens_of(document.text) for document in ahead.unasked) + 2 * looked_up,
    )


def to_weights(ahead: Ahead) -> list[KnowledgeTask]:
    """Return the tasks of the night's documents that the weights take."""
    return [planned.task for planned in ahead.documents if planned.place == "weights"]


def _general(config: NightConfig) -> tuple[int, int]:
    """Return the number of retention probes, and of questions on general knowledge that are trained on again."""
    seed = derive_seed(config.seed, "retention")
    probes = len(retention_probes(config.general, config.probes, seed))
    return probes, len(rehearsal_questions(config.general, config.replay.general, seed, probes=probes))


def _tries(config: NightConfig, weights: Sequence[KnowledgeTask]) -> UpdateCost:
    """Return what the updates take that self-edits are tried with."""
    recipe, written = config.student.update, config.teacher.sampling.max_new_tokens
    found = [
        update_cost(
            recipe,
            lines=_lines(written),
            tokens=written,
            passage=min(tokens_of(task.document.text), recipe.max_sequence_tokens),
        )
        for task in weights
    ]
    edits = config.writing.edits
    return UpdateCost(edits * sum(one.steps for one in found), edits * sum(one.tokens for one in found))


def _night_update(config: NightConfig, ahead: Ahead, general: int) -> tuple[int, UpdateCost]:
    """Return the lines of the night's update, and what it takes."""
    written = config.teacher.sampling.max_new_tokens
    learned = min(config.writing.learned, config.writing.edits) * len(to_weights(ahead))
    known = [held for held in ahead.state.after((), ahead.superseded).documents if held.asked and held.edits]
    again = [[line.line for edit in held.edits for line in edit.implications] for held in known]
    most = {"joint": len(again), "merged": 0, "sequential": config.replay.documents}[config.composition]
    # Which ones are replayed is drawn in the night; no draw has more lines, or tokens, than the longest ones.
    lines = learned * _lines(written) + sum(sorted(map(len, again), reverse=True)[:most]) + general
    replayed = sum(sorted((sum(map(tokens_of, told)) for told in again), reverse=True)[:most])
    tokens = learned * written + replayed + general * QUESTION_TOKENS
    return lines, update_cost(config.update, lines=lines, tokens=tokens, passage=config.update.max_sequence_tokens)


def _try_answers(config: NightConfig, ahead: Ahead, probes: int) -> int:
    """Return the answers that rewards rest on."""
    weights, unasked = to_weights(ahead), {document.id for document in ahead.unasked}
    asked = sum(most_questions(config) if task.id in unasked else len(task.questions) for task in weights)
    tries, found = config.writing.edits * len(weights), config.writing.edits * asked
    if config.teacher.reward.retention_weight > 0.0:
        found += probes * (tries + -(-tries // config.student.unit_updates))  # the base too, once in each unit
    return found


def _asked(config: NightConfig, ahead: Ahead) -> tuple[int, int]:
    """Return the questions on all documents that count after the night, and the tokens of passages before them."""
    if not ahead.documents:
        return 0, 0
    unasked = {document.id for document in ahead.unasked}
    new = [HeldDocument(task=planned.task, night="", place=planned.place) for planned in ahead.documents]
    asked = looked_up = 0
    for held in ahead.state.after(new, ahead.superseded).documents:
        if held.asked:
            task = held.task
            questions = most_questions(config) if task.id in unasked else len(task.comparison_questions)
            asked += questions
            if held.place == "memory":
                most = config.memory.passages * PASSAGE_TOKENS
                looked_up += questions * min(tokens_of(task.document.text), most)
    return asked, looked_up


def most_questions(config: NightConfig) -> int:
    """Return how many questions are written for a document, at most."""
    return 0 if config.questions is None else config.questions.most_questions


def _candidates(config: NightConfig) -> int:
    """Return how many questions have to be proved for a document, at most."""
    return 0 if config.questions is None else config.questions.samples * _lines(config.teacher.sampling.max_new_tokens)


def _lines(tokens: int) -> int:
    """Return the lines of so many tokens, at most."""
    return max(1, tokens // 2)


def tokens_of(text: str) -> int:
    """Return about how many tokens a text has."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)
