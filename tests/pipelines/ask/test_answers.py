"""Composing and reading answers without a model: settings of a version, confidence, and its threshold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.common.checkpoints import MICRO_MODELS, load_checkpoint
from evaluation.common.errors import InputError, ModelError
from evaluation.exact_match import AnswerFormat, chat_format
from pipelines.ask.answers import (
    FORMAT_FILE,
    UNKNOWN,
    AnswerSettings,
    AskOptions,
    Composer,
    Vocabulary,
    calibrated_confidence,
    read_version,
)
from pipelines.inbox.behaviour import route_lessons
from pipelines.inbox.lessons import Conversation, lessons_of
from student.memory import MEMORY_FILE, ExternalMemory, MemoryEntry
from tests.pipelines.inbox.chats import stored

MEMORY = ExternalMemory([MemoryEntry(id="a", text="Zyx lives in Oldmere.")])


def test_vocabulary_of_a_closed_base_is_that_of_the_open_one(tmp_path: Path) -> None:
    opened, closed = Vocabulary.of(load_checkpoint("micro-student")), Vocabulary.open("micro-student")
    assert closed[1:] == opened[1:]
    assert closed.tokenizer.get_vocab() == opened.tokenizer.get_vocab()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((MICRO_MODELS["micro-student"] / name).read_bytes())
    assert Vocabulary.open(str(tmp_path))[1:] == opened[1:]
    with pytest.raises(ModelError, match="tokenizer"):
        Vocabulary.open(str(tmp_path / "nothing"))


def test_options_that_are_not_set_are_the_version_s_own(tmp_path: Path) -> None:
    own = AnswerFormat(prompt="Q {question} A")
    assert read_version(tmp_path)[1] == AskOptions()
    (tmp_path / FORMAT_FILE).write_text(own.model_dump_json())  # as earlier releases wrote it
    assert read_version(tmp_path)[1] == AskOptions(answer_format=own)
    stored = AnswerSettings(answer_format=own, least_confidence=0.25, passages=3, least_score=2.0)
    (tmp_path / FORMAT_FILE).write_text(stored.model_dump_json())
    MEMORY.save(tmp_path / MEMORY_FILE)
    memory, options = read_version(tmp_path, AskOptions(passages=2, answer_format=None, device="cuda"))
    assert memory.digest == MEMORY.digest
    assert options == AskOptions(answer_format=own, least_confidence=0.25, passages=2, least_score=2.0, device="cuda")
    (tmp_path / FORMAT_FILE).write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_version(tmp_path)


def test_uncertain_answers_from_the_weights_alone_are_unknown() -> None:
    vocabulary = Vocabulary.open("micro-student")
    options = AskOptions(answer_format=AnswerFormat(), least_confidence=0.5, least_score=0.1)
    composer = Composer(vocabulary, MEMORY, options, has_adapter=True, version=3)
    end = min(vocabulary.end_tokens)
    line = vocabulary.tokenizer(" sailor", add_special_tokens=False)["input_ids"]
    rest = vocabulary.tokenizer("\nQuestion:", add_special_tokens=False)["input_ids"]
    weights, memory = composer.prompt_for("Who?"), composer.prompt_for("Where does Zyx live?")
    assert (weights.used, memory.used, memory.hits[0].entry.id) == ("weights", "memory", "a")
    low, high = [math.log(0.25)] * len(line), [math.log(0.81)] * len(line)
    sure = composer.read(weights, line, high)
    assert (sure.text, sure.by, sure.confidence, sure.guess, sure.version) == ("sailor", "weights", 0.81, None, 3)
    for after, values in (([end, *rest], [-9.0] * (len(rest) + 1)), (rest, [-9.0] * len(rest))):
        assert composer.read(weights, [*line, *after], [*high, *values]) == sure, "what follows the line counts not"
    unsure = composer.read(weights, line, low)
    assert (unsure.text, unsure.by, unsure.confidence, unsure.guess) == (UNKNOWN, "unknown", 0.25, "sailor")
    assert composer.read(weights, [end], [-0.1]).by == "unknown"
    looked_up = composer.read(memory, line, low)
    assert (looked_up.text, looked_up.by, looked_up.sources[0].id) == ("sailor", "memory", "a")
    alone = Composer(vocabulary, MEMORY, options, has_adapter=False)
    assert alone.read(alone.prompt_for("Who?"), line, low).by == "base"


def test_chat_model_is_told_what_its_client_prefers_and_nobody_else_s_wishes() -> None:
    vocabulary = Vocabulary.open("micro-student")
    vocabulary.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    said = (stored("From now on answer in German."), stored("Always keep your answers brief.", name="b"))
    lessons = [lesson for each in said for lesson in lessons_of(Conversation(each.id, "ann", each.messages)).lessons]
    made = route_lessons(lessons, ()).documents
    entries = [MemoryEntry(id=each.id, title=each.title, text=each.text, client=each.client) for each in made]
    assert len(entries) == 2
    memory, options = ExternalMemory([*MEMORY.entries, *entries]), AskOptions(least_score=0.1)

    def asked(form: AnswerFormat, client: str) -> str:
        used = options.model_copy(update={"answer_format": form})
        prompt = Composer(vocabulary, memory, used, has_adapter=True).prompt_for("Where does Zyx live?", client=client)
        assert [hit.entry.id for hit in prompt.hits] == ["a"]
        return prompt.text

    chat = chat_format(vocabulary.tokenizer)
    told = asked(chat, "ann").partition("Zyx lives in Oldmere.\n")[2]
    wishes = {"Answer in German.", "Keep the answer to this length: brief."}
    assert {f"{wish}." for wish in told.partition(" Where does Zyx live?")[0].strip(".").split(". ")} == wishes
    assert asked(chat, "ben") == asked(chat, "")
    for form, client in ((chat, "ben"), (AnswerFormat(), "ann")):
        assert not any(wish in asked(form, client) for wish in wishes)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.4, 0.7, 0.9, 1.0]), st.booleans()), max_size=12))
def test_no_threshold_makes_fewer_errors_than_the_calibrated_one(answers: list[tuple[float, bool]]) -> None:
    def errors(threshold: float) -> int:
        return sum(right if confidence < threshold else not right for confidence, right in answers)

    found = calibrated_confidence(answers)
    assert found == 0.0 or errors(found) < errors(0.0)
    assert not answers or found <= max(confidence for confidence, _ in answers)
    if any(right for _, right in answers):
        top = max(confidence for confidence, _ in answers)
        assert errors(found) == min(errors(t) for t in (0.0, 0.05, 0.2, 0.5, 0.8, 0.95, top) if t <= top)
    else:
        assert found == 0.0
