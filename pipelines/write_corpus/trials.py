"""Kinds tried on the student: what a piece adds to what the student learns from a section, measured in the bank.

A section's student is trained on the lines that the section has so far and the piece, and compared with the one that
was trained on these lines alone, with the same seeds: a marginal gain. The questions are those of the section.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from evaluation.statistics import known_mean
from evaluation.tasks import KnowledgeTask, Question
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.questions import WriterSettings, write_questions
from pipelines.loop.loop import Loop
from pipelines.loop.update import Trial as Update
from pipelines.models import open_student
from pipelines.records import Edit, Record, ScoredUpdate
from pipelines.write_corpus.allocate import Trial, draw_kinds
from pipelines.write_corpus.funnel import Kept
from pipelines.write_corpus.plan import Passage, Schedule
from pipelines.write_corpus.write import BATCH, Writer, Written
from teacher.kinds import Kind
from teacher.self_edit import Implication, SelfEdit


class Tried:
    """The student's trials over the rounds of a corpus."""

    def __init__(self, loop: Loop, passages: Sequence[Passage], most: int) -> None:
        """`passages` are those that kinds may be tried on, at most `most` of them in a round."""
        self._loop, self.passages, self._most = loop, list(passages), most
        self._held: dict[str, tuple[Implication, ...]] = {}
        self.trials: list[Trial] = []
        self.failed = 0
        """Trials whose update had no score."""

    def round(
        self,
        number: int,
        kinds: Sequence[Kind],
        schedule: Schedule,
        writer: Writer,
        add: Callable[[Written], Kept],
    ) -> None:
        """Try every kind once on each of the round's sections; what is written is added to the corpus."""
        size, most = len(self.passages), min(self._most, len(self.passages))
        chosen = [self.passages[(number * most + i) % size] for i in range(most)]
        pieces = [schedule.of(passage, kind) for passage in chosen for kind in kinds]
        kept: dict[str, dict[str, Kept]] = {}
        for start in range(0, len(pieces), BATCH):
            for written in writer.write(pieces[start : start + BATCH]):
                kept.setdefault(written.piece.passage.id, {})[written.piece.kind.name] = add(written)
        updates, places = [], []
        for passage in chosen:
            held = self._held.get(passage.id, ())
            updates.append(self._update(passage, 0, held))
            for place, (name, mine) in enumerate(kept[passage.id].items(), 1):
                if mine.lines:
                    updates.append(self._update(passage, place, (*held, *mine.lines)))
                    places.append((passage.id, place, name))
        scored = {update.edit_id: update for update in self._loop.update(updates, "rewards")}
        for passage_id, place, name in places:
            after, before = (self._score(scored[f"{passage_id}#{i}"]) for i in (place, 0))
            if after is None or before is None:
                self.failed += 1
                continue
            tokens = max(1, kept[passage_id][name].tokens)
            self.trials.append(Trial(kind=name, round=number, tokens=tokens, gain=after - before))
        names, seed = [kind.name for kind in kinds], self._loop.seed("held", number)
        for passage, name in zip(chosen, draw_kinds(names, self.trials, len(chosen), number, seed), strict=True):
            self._held[passage.id] = (*self._held.get(passage.id, ()), *kept[passage.id][name].lines)

    def _update(self, passage: Passage, place: int, lines: Sequence[Implication]) -> Update:
        if not lines:
            return Update(passage.id, place, None, 0)
        edit = Edit.written(passage.id, SelfEdit(implications=tuple(lines)), "", index=place)
        return self._loop.trials([edit], "corpus")[0]

    def _score(self, update: ScoredUpdate) -> float | None:
        scores = update.by_question(self._loop.settings.teacher.reward.metric)
        return known_mean(scores) if update.failure is None else None


class Asked(Record):
    """Questions that were generated for some sections."""

    questions: dict[str, tuple[Question, ...]]
    """By section id."""


def ask_about(loop: Loop, writer: Writer, passages: Sequence[Passage], settings: WriterSettings) -> Asked:
    """Return questions about sections that the student cannot answer without them; stored as other work is."""
    documents = {
        p.id: InboxDocument(title=p.task.document.title, text=p.task.document.text, source=p.source) for p in passages
    }

    def ask(_: Mapping[str, InboxDocument]) -> Asked:
        prompt = settings.prompt_for(loop.settings.teacher.model)
        form, seed = loop.settings.student.answer_format, loop.seed("questions")
        chat = writer.policy.tokenizer if loop.settings.teacher.chat else None
        student, listed = open_student(loop.student_ref), list(documents.values())
        found = write_questions(listed, writer.sampler(), student, form, prompt, settings.samples, seed, chat)
        return Asked(questions={name: each.questions for name, each in zip(documents, found, strict=True)})

    content = {
        "student": loop.student_digest,
        "format": loop.settings.student.answer_format.model_dump(mode="json"),
        "writer": [loop.settings.teacher.model, writer.ref.digest],
        "sampling": loop.settings.teacher.sampling.model_dump(mode="json"),
        "questions": settings.model_dump(mode="json"),
        "documents": [[name, document.id] for name, document in documents.items()],
        "seed": loop.seed("questions"),
    }
    describe = f"asking about {len(documents)} sections"
    return loop.execution.run("corpus-questions", content, ask, documents, describe=describe)


def with_questions(passages: Sequence[Passage], asked: Asked) -> list[Passage]:
    """Return the passages with the questions that were generated for them."""

    def task(passage: Passage) -> KnowledgeTask:
        return passage.task.model_copy(update={"questions": asked.questions.get(passage.id, ())})

    return [p._replace(task=task(p)) if p.id in asked.questions else p for p in passages]
