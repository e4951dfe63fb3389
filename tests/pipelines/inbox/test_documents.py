from __future__ import annotations

import pytest
from pydantic import ValidationError

from evaluation.tasks import Question
from pipelines.inbox.documents import MAX_TEXT_CHARACTERS
from teacher.prompts import PROMPTS
from tests.pipelines.inbox.files import document

ASKED = Question(question="Who nests at Lake Orrin zyzzyva?", answer="quokka")


def test_id_depends_on_title_text_and_source_alone() -> None:
    base = document(title="Birds")
    assert base.id.startswith("doc-")
    assert len(base.id) == 16
    assert document(title="Birds", questions=[ASKED], route="memory", effective="2026-01-02", name="x").id == base.id
    others = (document(title="Birds!"), document("Other.", title="Birds"), document(source="b", title="Birds"))
    assert len({base.id, *(other.id for other in others)}) == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"text": " \n"},
        {"text": "x" * (MAX_TEXT_CHARACTERS + 1)},
        {"text": "a\0b"},
        {"source": ""},
        {"title": "t" * 501},
        {"supersedes": ["  "]},
        {"route": "disk"},
        {"colour": "red"},
    ],
)
def test_document_out_of_its_limits_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        document(**fields)  # type: ignore[arg-type]


def test_task_keeps_questions_for_rewards_and_for_comparisons_apart() -> None:
    other = Question(question="Where do cranes nest?", answer="Lake Orrin")
    task = document(title="Birds", questions=[ASKED], held_out_questions=[other]).as_task()
    assert task.questions == (ASKED,)
    assert task.comparison_questions == (other,)
    assert (task.document.title, task.document.source) == ("Birds", "notes")
    assert document().as_task().comparison_questions == ()  # enough for memory


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_no_question_reaches_a_prompt(name: str) -> None:
    plain = document(title="Birds")
    asked = document(title="Birds", questions=[ASKED], held_out_questions=[ASKED])
    prompt = PROMPTS[name].render(asked.document)
    assert prompt == PROMPTS[name].render(plain.document)
    assert asked.text in prompt
    assert "zyzzyva" not in prompt
    assert "quokka" not in prompt
