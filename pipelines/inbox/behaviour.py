"""What lessons of interactions may teach, by rules alone: documents, with situations as their questions.

A procedure becomes a document, open to the weights, when the chats of two clients show it. Of their requests it holds
the words that both have: nothing that one client alone says gets into it. Its questions are situations: the request of
one chat with the values of another, every second one held out. A preference becomes an entry of the memory of its
client. What contradicts waits for a person.

The documents carry the source of corrections, so that `forget`, `release` and a client's own memory treat them alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from evaluation.tasks import Question
from pipelines.inbox.corrections import SEPARATOR, SOURCE, as_line, clients_of
from pipelines.inbox.documents import MAX_TITLE_CHARACTERS, InboxDocument
from pipelines.inbox.lessons import Lesson
from pipelines.inbox.readers.text import truncated
from student.memory import terms_of

TOOLS = "Which tools, in which order: "
"""Begins the title of a procedure's document, and its questions, so that they never stand for the request itself."""
_ALIKE = 0.5
"""Requests are of one kind if both have more than this share, in [0, 1], of the stems of the two (Jaccard)."""
_COURTESY = "please kindly thanks hello hi dear"
_MOST_SITUATIONS = 12
_PLACEHOLDER = re.compile(r"\{([\w.-]+)\}")


class RoutedLessons(NamedTuple):
    """What becomes of lessons."""

    documents: list[InboxDocument]
    quarantined: dict[str, str]
    """Ids of those that wait for a person -> the reason."""
    places: dict[str, str]
    """Ids of the interactions -> id of the document that says what they show."""
    waiting: dict[str, str]
    """Ids of interactions that show what is not confirmed yet -> what is missing."""


def route_lessons(lessons: Sequence[Lesson], documents: Sequence[InboxDocument]) -> RoutedLessons:
    """Return the documents that lessons become.

    Args:
        lessons: Of chats that no document stands for yet, in the order in which they came.
        documents: Those that are not superseded, earlier lessons and those that wait for a person among them.
    """
    found = RoutedLessons([], {}, {}, {})
    for about in dict.fromkeys(each.about for each in lessons if each.kind == "preference"):
        _preference([each for each in lessons if each.about == about], documents, found)
    for kind in _kinds([each for each in lessons if each.kind == "procedure"], documents):
        _procedures(kind, found)
    return found._replace(waiting={chat: why for chat, why in found.waiting.items() if chat not in found.places})


def _preference(said: Sequence[Lesson], documents: Sequence[InboxDocument], found: RoutedLessons) -> None:
    """Add what becomes of all that one client says about one aspect; the last holds."""
    found.waiting.update({each.chat: f"a preference, said once ({each.says}): it is not kept" for each in said})
    kept = [each for each in said if each.durable or len({o.talk for o in said if o.says == each.says}) > 1]
    if not kept:
        return
    last, known = kept[-1], [each for each in documents if _is_of(each, kept[-1])]
    chosen = {each.says: each for each in kept if each.chat == last.chat}
    reason = f"{last.client} says {' and '.join(chosen)} at the same time" if len(chosen) > 1 else ""
    for each in chosen.values():
        same = [document.id for document in known if document.questions[0].answer == each.says]
        made = InboxDocument(
            title=each.about,
            text=each.line,
            source=SOURCE + each.client,
            whole=each.chat,  # so that each time it is said its claims are new
            questions=(Question(question=each.about, answer=each.says),),
            supersedes=() if reason else tuple(document.id for document in known),
            route="memory",
            client=each.client,
        )
        if not same:
            _add(made, reason, found)
        found.places.update({earlier.chat: (*same, made.id)[0] for earlier in kept})


def _is_of(document: InboxDocument, lesson: Lesson) -> bool:
    return document.title == lesson.about and clients_of(document) == (lesson.client,)


def _add(made: InboxDocument, reason: str, found: RoutedLessons) -> None:
    found.documents.append(made)
    found.quarantined.update({made.id: reason} if reason else {})


class _Kind(NamedTuple):
    """Requests of one kind."""

    terms: frozenset[str]
    documents: list[InboxDocument]
    """Of one title."""
    lessons: list[Lesson]


def _terms(request: str) -> frozenset[str]:
    """Return the stems of a request, without placeholders and courtesy."""
    courtesy = frozenset(terms_of(_COURTESY))
    return frozenset(term for term in terms_of(_PLACEHOLDER.sub(" ", request)) if " " not in term) - courtesy


def _kinds(lessons: Sequence[Lesson], documents: Sequence[InboxDocument]) -> list[_Kind]:
    """Return lessons by kind of request, with the documents about it; those of known documents first."""
    kinds: dict[str, _Kind] = {}
    for document in documents:
        title, about = document.title, document.title.removeprefix(TOOLS)
        # A correction of the same question has another text: one client may have chosen the words of its title.
        if clients_of(document) and document.text == _text(title, document.questions[0].answer):
            kinds.setdefault(about, _Kind(_terms(about), [], [])).documents.append(document)
    for lesson in lessons:
        mine = _terms(lesson.about)
        alike = (kind for kind in kinds.values() if len(mine & kind.terms) > _ALIKE * len(mine | kind.terms))
        (next(alike, None) or kinds.setdefault(lesson.about, _Kind(mine, [], []))).lessons.append(lesson)
    return [kind for kind in kinds.values() if kind.lessons]


def _procedures(kind: _Kind, found: RoutedLessons) -> None:
    """Add what becomes of the procedures for one kind of request; of each client the last one holds."""
    last = {lesson.client: lesson.says for lesson in kind.lessons}
    said = {client: each.questions[0].answer for each in kind.documents for client in clients_of(each)} | last
    for says in dict.fromkeys(last.values()):
        clients = [client for client, answer in said.items() if answer == says]
        rivals = [client for client, answer in said.items() if answer != says]
        mine = [lesson for lesson in kind.lessons if lesson.client in clients]
        known = [each for each in kind.documents if each.questions[0].answer == says]
        covering = [each for each in known if len(clients_of(each)) > 1 or set(clients) <= set(clients_of(each))]
        if not covering and not rivals and len(clients) < 2:
            why = f"a procedure of one client ({says}): a second one opens the weights to it"
            found.waiting.update({lesson.chat: why for lesson in mine})
            continue
        if not covering:
            reason = f"contradicts the procedure of {SEPARATOR.join(rivals)}" if rivals else ""
            shown = [lesson for lesson in mine if lesson.says == says]
            covering = [_procedure(_title(kind), says, clients, shown, () if reason else kind.documents)]
            _add(covering[0], reason, found)
        found.places.update({lesson.chat: covering[0].id for lesson in mine})


def _title(kind: _Kind) -> str:
    """Return the title of what is known, or the words that the requests of two clients have in common."""
    if kind.documents:
        return kind.documents[0].title
    first = kind.lessons[0]
    other = next(each for each in kind.lessons if each.client != first.client)
    names, terms = set(_PLACEHOLDER.findall(other.about)), _terms(other.about)

    def is_common(word: str) -> bool:
        placeholders, mine = _PLACEHOLDER.findall(word), _terms(word)
        return names.issuperset(placeholders) and mine <= terms and bool(mine or placeholders)

    common = " ".join(filter(is_common, as_line(first.about).split())).rstrip(".,;:!?")
    return truncated(TOOLS + common, MAX_TITLE_CHARACTERS)


def _procedure(
    title: str, says: str, clients: Sequence[str], shown: Sequence[Lesson], replaced: Sequence[InboxDocument]
) -> InboxDocument:
    """Return the document of a procedure, with its situations."""
    situations = list(dict.fromkeys(_situations(shown, says)))[:_MOST_SITUATIONS]
    confirmed = len(clients) > 1 and all(lesson.durable for lesson in shown)
    return InboxDocument(
        title=title,
        text=_text(title, says),
        source=SOURCE + SEPARATOR.join(clients),
        whole=shown[-1].chat,
        questions=tuple(situations[::2]),
        held_out_questions=tuple(situations[1::2]),
        supersedes=tuple(each.id for each in replaced),
        route=None if confirmed else "memory",
        client="" if len(clients) > 1 else clients[0],
    )


def _text(title: str, says: str) -> str:
    return f"{title}? The calls that answer it are {says}."


def _situations(shown: Sequence[Lesson], says: str) -> Iterator[Question]:
    """Yield situations like those of some chats: the request of each with the values of the next."""
    for place, lesson in enumerate(shown):
        other = shown[(place + 1) % len(shown)]
        request = lesson.about
        for name, value in lesson.values.items():
            request = request.replace(f"{{{name}}}", other.values.get(name, value))
        yield Question(question=TOOLS + as_line(request), answer=says)
