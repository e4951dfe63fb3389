"""What users' corrections may teach: the only way from an interaction to a document, decided by rules alone.

A correction becomes a document for the external memory that names its client. It never replaces a document of another
kind, and nothing but a second client, or a document's own question, opens the weights to it. What contradicts another
client, or a document in force, waits for a person. Texts of users are data: they are one line, without control tokens,
so that in a prompt they end where the passage ends.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from evaluation.answers import normalize_answer
from evaluation.common.text import clean_text
from evaluation.tasks import Question
from pipelines.inbox.documents import MAX_TITLE_CHARACTERS, InboxDocument
from pipelines.inbox.lessons import TRAINING, is_preference
from pipelines.inbox.readers.text import one_line, truncated
from student.memory import LEAST_SCORE, ExternalMemory, MemoryEntry

SOURCE = "feedback of "
"""Begins the source of a correction's document, before the names of its clients."""
SEPARATOR = ", "
_CONTROL = re.compile(r"<(?=[|/\w｜])|\[(?=/?INST\])")
"""Begins what tokenizers may take for a token of their own."""


class Correction(NamedTuple):
    """A user's correction of an answer."""

    id: str  # of the interaction
    client: str
    question: str
    answer: str


class Routed(NamedTuple):
    """What becomes of corrections."""

    documents: tuple[InboxDocument, ...]
    quarantined: dict[str, str]
    """Ids of those that wait for a person -> the reason."""
    places: dict[str, str]
    """Ids of the interactions -> id of the document that says what they say."""


def clients_of(document: InboxDocument) -> tuple[str, ...]:
    """Return the clients whose correction a document is; none for any other."""
    return clients_in(document.source)


def clients_in(source: str) -> tuple[str, ...]:
    """Return the clients that a document's source names as those whose correction it is."""
    return tuple(source.removeprefix(SOURCE).split(SEPARATOR)) if source.startswith(SOURCE) else ()


def route_corrections(
    corrections: Sequence[Correction], documents: Sequence[InboxDocument], quarantined: Collection[str] = ()
) -> Routed:
    """Return the documents that new corrections become.

    Args:
        corrections: New ones, in the order in which they came; of one client and question the last one holds.
        documents: Those that are not superseded, earlier corrections among them.
        quarantined: Ids of documents that wait for a person: other documents among them say nothing.
    """
    others = [each for each in documents if not clients_of(each) and each.id not in quarantined]
    memory = ExternalMemory(MemoryEntry(id=each.id, title=each.title, text=each.text) for each in others)
    asked: dict[str, list[tuple[str, str]]] = {}
    for name, own in ((each.id, own) for each in others for own in (*each.questions, *each.held_out_questions)):
        asked.setdefault(_key(own.question), []).append((name, normalize_answer(own.answer)))
    groups: dict[str, list[Correction]] = {}
    for each in corrections:
        groups.setdefault(_key(each.question), []).append(each)
    made, waiting, places = list[InboxDocument](), dict[str, str](), dict[str, str]()
    for question, group in groups.items():
        mine = [each for each in documents if clients_of(each) and _key(each.title) == question]
        said = {client: each.questions[0].answer for each in mine for client in clients_of(each)}
        said |= {each.client: as_line(each.answer) for each in group}
        answers: dict[str, list[str]] = {}
        for client, answer in said.items():
            answers.setdefault(normalize_answer(answer), []).append(client)
        for answer, clients in answers.items():
            new = [each for each in group if each.client in clients]
            if not new:
                continue
            known = [each for each in mine if normalize_answer(each.questions[0].answer) == answer]
            covering = [each for each in known if len(clients_of(each)) > 1 or set(clients) <= set(clients_of(each))]
            if covering:
                document = covering[0]
            else:
                reason, confirmed = _judged(question, answer, answers, asked.get(question, ()), memory)
                document = _document(new[-1], clients, () if reason else mine, confirmed=confirmed)
                made.append(document)
                waiting |= {document.id: reason} if reason else {}
            places |= {each.id: document.id for each in new}
    return Routed(tuple(made), waiting, places)


def _judged(
    question: str, answer: str, answers: Mapping[str, list[str]], own: Sequence[tuple[str, str]], memory: ExternalMemory
) -> tuple[str, bool]:
    """Return why a correction waits for a person, or nothing; and whether a second source confirms it.

    `answers` has the clients of each answer; `own` has ids of documents that ask the question, with their answers.
    """
    if about := TRAINING.search(f"{question} {answer}"):
        return f"speaks about training ({truncated(about[0], 60)!r})", False
    rivals = [client for given, names in answers.items() if given != answer for client in names]
    if rivals:
        return f"contradicts the correction of {SEPARATOR.join(rivals)}", False
    if wrong := [name for name, given in own if given != answer]:
        return f"contradicts {wrong[0]}, which answers the question otherwise", False
    hits = () if own else memory.search(question, 3, LEAST_SCORE)
    if hits and not any(f" {answer} " in f" {normalize_answer(hit.passage)} " for hit in hits):
        return f"{hits[0].entry.id} is about the question and does not say so", False
    return "", bool(own) or len(answers[answer]) > 1


def _document(
    correction: Correction, clients: Sequence[str], replaced: Sequence[InboxDocument], *, confirmed: bool
) -> InboxDocument:
    """Return the document of a correction; it replaces earlier corrections of the same answer, and nothing else."""
    question, answer = truncated(as_line(correction.question), MAX_TITLE_CHARACTERS), as_line(correction.answer)
    return InboxDocument(
        title=question,
        text=f"{question} {answer}",
        source=SOURCE + SEPARATOR.join(clients),
        whole=correction.id,  # so that each time it is said its claims are new
        questions=(Question(question=question, answer=answer),),
        supersedes=tuple(each.id for each in replaced),
        route=None if confirmed else "memory",
        client="" if confirmed or len(clients) > 1 else clients[0],
    )


def accepted(document: InboxDocument, documents: Sequence[InboxDocument]) -> InboxDocument:
    """Return a correction that a person accepts: it holds for everybody and replaces all others on its question.

    A preference remains its client's.
    """
    same = (each for each in documents if clients_of(each) and _key(each.title) == _key(document.title))
    replaced = tuple(each.id for each in same if each.id != document.id)
    client = document.client if is_preference(document.title, document.client) else ""
    return document.model_copy(update={"supersedes": replaced, "client": client})


def as_line(text: str) -> str:
    """Return what a user says as data: on one line, without control tokens."""
    return one_line(_CONTROL.sub(lambda match: f"{match[0]} ", clean_text(text)))


def _key(question: str) -> str:
    """Return what two wordings of one question have in common."""
    return normalize_answer(truncated(as_line(question), MAX_TITLE_CHARACTERS))
