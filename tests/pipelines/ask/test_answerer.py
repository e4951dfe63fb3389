"""A student that learned one document and looks others up: what answers, and that versions keep their answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

import preceptor as api
from evaluation.common.checkpoints import Checkpoint, load_checkpoint
from evaluation.common.errors import ConfigError, InputError, LineageError, ModelError, ScoringError
from evaluation.exact_match import AnswerFormat, first_line
from evaluation.microworld.texts import oracle_lines
from evaluation.microworld.world import WorldDocument, draw_documents
from evaluation.tasks import Question, lines_of
from pipelines.ask.answerer import Answerer
from pipelines.ask.answers import FORMAT_FILE, UNKNOWN, Answer, AnswerSettings, AskOptions, Used
from pipelines.cli import app
from pipelines.lineage.registry import Registry
from pipelines.lineage.run import Lineage
from pipelines.lineage.versions import MEMORY_TAG
from pipelines.process import preceptor
from pipelines.settings import TrackingConfig
from student.adapters import Adapter, save_adapter
from student.bank.bank import LoraBank
from student.config import UpdateRecipe
from student.memory import MEMORY_FILE, ExternalMemory, MemoryEntry
from student.updates import UpdateRequest, build_sequences
from teacher.self_edit import Implication, SelfEdit

LEARNED, *KEPT = draw_documents("train", 9, 3)
TRACKING = TrackingConfig()
STUDENT = {"model": "micro-student"}
OPTIONS = AskOptions(max_new_tokens=8)
CONFIGS = Path(__file__).resolve().parents[3] / "configs"
Open = Callable[..., Lineage]


class Trained(NamedTuple):
    student: Checkpoint
    adapter: Adapter


def entry_of(document: WorldDocument) -> MemoryEntry:
    fields = document.task.document.model_dump(include={"id", "title", "text", "source"})
    return MemoryEntry(**fields)


def memory_of(documents: Sequence[WorldDocument]) -> ExternalMemory:
    return ExternalMemory(map(entry_of, documents))


MEMORY = memory_of(KEPT)


def questions_of(documents: Sequence[WorldDocument]) -> list[Question]:
    return [question for d in documents for question in d.task.held_out_questions[::4]]


def accuracy(answers: Sequence[Answer], asked: Sequence[Question]) -> float:
    return sum(a.text == q.answer for a, q in zip(answers, asked, strict=True)) / len(asked)


def without_confidence(answers: Sequence[Answer]) -> list[Answer]:
    """The same answers without what rounding may change."""
    return [answer.model_copy(update={"confidence": 0.0}) for answer in answers]


def ways(answers: Sequence[Answer]) -> set[Used]:
    return {answer.by for answer in answers}


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The shipped student, and an adapter that learned one document."""
    student = load_checkpoint("micro-student")
    recipe = UpdateRecipe(epochs=12, learning_rate=5e-3)
    edit = SelfEdit(implications=tuple(Implication(text=t, answer=a) for t, a in oracle_lines(LEARNED.sheet)))
    data = build_sequences(lines_of(edit), LEARNED.task.document, student.tokenizer, recipe, AnswerFormat())
    with LoraBank(student.model) as bank:
        (result,) = bank.train([UpdateRequest("learned", data.sequences, recipe, seed=0)])
    assert result.adapter is not None, result.detail
    return Trained(student, result.adapter)


@pytest.fixture(scope="module")
def answerer(trained: Trained) -> Answerer:
    return Answerer(trained.student, trained.adapter, MEMORY, OPTIONS)


# What answers


def test_auto_takes_weights_for_what_was_learned_and_memory_for_what_is_kept(answerer: Answerer) -> None:
    learned, kept = questions_of([LEARNED]), questions_of(KEPT)
    answers = answerer.answer_many([q.question for q in [*learned, *kept]])
    from_weights, from_memory = answers[: len(learned)], answers[len(learned) :]
    assert ways(from_weights) == {"weights"}
    assert ways(from_memory) == {"memory"}
    assert accuracy(from_weights, learned) >= 0.75
    assert accuracy(from_memory, kept) >= 0.8
    assert all(not answer.sources for answer in from_weights)
    owners = [d.task.id for d in KEPT for _ in d.task.held_out_questions[::4]]
    assert [answer.sources[0].id for answer in from_memory] == owners
    assert all(answer.sources[0].score >= OPTIONS.least_score for answer in from_memory)


def test_each_way_uses_what_it_says(answerer: Answerer) -> None:
    kept, learned = [q.question for q in questions_of(KEPT)], [q.question for q in questions_of([LEARNED])]
    assert ways(answerer.answer_many(kept, "weights")) == {"weights"}
    assert ways(answerer.answer_many(kept, "both")) == {"both"}
    assert accuracy(answerer.answer_many(kept, "weights"), questions_of(KEPT)) < 0.2
    assert accuracy(answerer.answer_many(kept, "both"), questions_of(KEPT)) > 0.6
    # Without the adapter, what was learned is not known; passages that are asked for come however badly they fit.
    without = answerer.answer_many(learned, "memory")
    assert accuracy(without, questions_of([LEARNED])) < 0.5
    assert ways(without) <= {"memory", "base"}


def test_without_adapter_or_memory_less_is_left(trained: Trained) -> None:
    asked = questions_of(KEPT)[0].question
    alone = Answerer(trained.student)
    assert {alone.answer(asked, by).by for by in ("auto", "weights", "memory", "both")} == {"base"}
    reader = Answerer(trained.student, None, MEMORY)
    assert (reader.answer(asked, "both").by, reader.answer(asked, "weights").by) == ("memory", "base")
    assert Answerer(trained.student, trained.adapter).answer(asked, "both").by == "weights"


def test_retired_document_answers_nothing(answerer: Answerer, trained: Trained) -> None:
    gone = KEPT[2]
    rest = memory_of([document for document in KEPT if document is not gone])
    after = Answerer(trained.student, trained.adapter, rest, OPTIONS)
    asked = questions_of([gone])
    for by in ("auto", "memory", "both"):
        answers = after.answer_many([q.question for q in asked], by)
        assert gone.task.id not in {source.id for answer in answers for source in answer.sources}
        assert accuracy(answers, asked) < accuracy(answerer.answer_many([q.question for q in asked], by), asked)


# The same text as elsewhere


def test_answers_are_those_of_peft_and_transformers(answerer: Answerer, tmp_path: Path) -> None:
    from peft import PeftModel

    model, tokenizer = load_checkpoint("micro-student")
    assert answerer.adapter is not None
    adapted = PeftModel.from_pretrained(model, save_adapter(answerer.adapter, tmp_path / "adapter")).eval()

    def greedy(prompt: str) -> str:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        with torch.inference_mode():
            whole = adapted.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
        return first_line(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))

    asked = [q.question for q in questions_of([LEARNED, KEPT[0]])]
    weights = [greedy(f"Question: {question}\nAnswer:") for question in asked]
    assert [answer.text for answer in answerer.answer_many(asked, "weights")] == weights
    both = answerer.answer_many(asked, "both")
    passages = [f"Passage: {a.sources[0].passage}\n" if a.sources else "" for a in both]
    read = [greedy(f"{p}Question: {q}\nAnswer:") for p, q in zip(passages, asked, strict=True)]
    assert [answer.text for answer in both] == read
    assert weights != read


def test_answers_do_not_depend_on_what_else_is_asked(answerer: Answerer, trained: Trained) -> None:
    asked = [q.question for q in questions_of([*KEPT[:3], LEARNED])[::2]]
    together = answerer.answer_many(asked)
    alone = [answerer.answer(question) for question in asked]
    assert [a.confidence for a in alone] == pytest.approx([a.confidence for a in together], abs=1e-3)
    assert all(0.0 < answer.confidence <= 1.0 for answer in together)
    assert without_confidence(alone) == without_confidence(together)
    few = Answerer(trained.student, trained.adapter, MEMORY, OPTIONS.model_copy(update={"batch_size": 3}))
    assert without_confidence(few.answer_many(asked[::-1])) == without_confidence(together[::-1])
    assert answerer.answer_many([]) == []


# What does not fit


def test_passages_that_do_not_fit_are_left_out(trained: Trained) -> None:
    """The micro tokenizer has a token for each byte of an unknown word."""
    entries = [MemoryEntry(id=f"{i}", text=f"Zyx {i} " + "qwertyuiop" * 40) for i in range(4)]
    answerer = Answerer(trained.student, None, ExternalMemory(entries), AskOptions(passages=4))
    assert [source.id for source in answerer.answer("Zyx?", "memory").sources] == ["0", "1"]
    huge = ExternalMemory([MemoryEntry(id="huge", text="Zyx " + "qwertyuiop" * 200)])
    assert Answerer(trained.student, None, huge).answer("Zyx?", "memory").by == "base"
    with pytest.raises(ScoringError, match="too long"):
        answerer.answer("Zyx " + "qwertyuiop" * 200)


def test_adapter_of_another_base_is_refused(trained: Trained) -> None:
    other = Adapter(trained.adapter.factors, trained.adapter.rank, trained.adapter.alpha, "f" * 64)
    with pytest.raises(ModelError, match="--student"):
        Answerer(trained.student, other)
    with pytest.raises(ModelError, match="does not fit"):
        Answerer(trained.student, Adapter({"layer": next(iter(other.factors.values()))}, 8, 16.0, "")).answer("Who?")


def test_directory_without_a_memory_has_an_empty_one(trained: Trained, tmp_path: Path) -> None:
    directory = save_adapter(trained.adapter, tmp_path / "adapter")
    assert len(Answerer.from_directory(directory, "micro-student").memory) == 0
    (directory / MEMORY_FILE).write_text("nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        Answerer.from_directory(directory, "micro-student")


# Versions


def register(
    lineage: Lineage,
    adapter: Adapter,
    memory: ExternalMemory,
    place: Path,
    settings: AnswerSettings = AnswerSettings(),  # noqa: B008 - frozen
) -> int:
    directory = save_adapter(adapter, place)
    memory.save(directory / MEMORY_FILE)
    (directory / FORMAT_FILE).write_text(settings.model_dump_json())
    tags = {MEMORY_TAG: memory.digest}
    return lineage.registry.register("student", directory, digest=adapter.digest, tags=tags, run_id=lineage.run_id)


def test_rollback_restores_every_answer_memory_included(
    open_run: Open, work_dir: Path, tmp_path: Path, trained: Trained
) -> None:
    student, adapter = trained
    registry = Registry.open(TRACKING, work_dir)
    with pytest.raises(ConfigError, match="preceptor promote"):
        Answerer.from_registry(TRACKING, work_dir)
    halved = Adapter({n: (a, b / 2) for n, (a, b) in adapter.factors.items()}, adapter.rank, adapter.alpha, "")
    left = [entry for entry in MEMORY.entries if entry.id != KEPT[0].task.id]
    fresh = ExternalMemory([*left, *(entry_of(d) for d in draw_documents("test", 2, 0))])
    for night, (made, memory) in enumerate(((adapter, MEMORY), (halved, fresh))):
        registry.promote("student", register(open_run(f"night/{night}", student=STUDENT), made, memory, tmp_path / "a"))

    asked = [q.question for q in questions_of([LEARNED, *KEPT[:3]])]
    second = Answerer.from_registry(TRACKING, work_dir, options=OPTIONS)
    assert second.version == 2
    before = Answerer(student, adapter, MEMORY, OPTIONS, version=1).answer_many(asked)
    assert second.answer_many(asked) != before
    assert registry.rollback("student", "it forgot") == (2, 1)
    assert Answerer.from_registry(TRACKING, work_dir, options=OPTIONS).answer_many(asked) == before
    assert Answerer.from_registry(TRACKING, work_dir, version=2, options=OPTIONS).answer_many(asked) == (
        second.answer_many(asked)
    )


def test_python_opens_and_asks_a_registered_student(
    open_run: Open, work_dir: Path, tmp_path: Path, trained: Trained
) -> None:
    number = register(open_run(student=STUDENT), trained.adapter, MEMORY, tmp_path / "a")
    with pytest.raises(ConfigError, match="preceptor promote"):
        api.load_student(work_dir=work_dir)
    Registry.open(TRACKING, work_dir).promote("student", number)
    learned, kept = LEARNED.task.questions[0], KEPT[0].task.questions[0]
    answers = api.ask([learned.question, kept.question], work_dir=work_dir)
    assert [(each.text, each.by) for each in answers] == [(learned.answer, "weights"), (kept.answer, "memory")]
    assert api.ask(learned.question, by="weights", work_dir=str(work_dir)).text == learned.answer
    for config in (None, CONFIGS / "nights-demo.yaml"):
        model, tokenizer, version = api.load_student(work_dir=work_dir, config=config)
        assert version == number
        inputs = tokenizer(AnswerFormat().render(learned.question), return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert first_line(tokenizer.decode(output, skip_special_tokens=True)) == learned.answer
    with pytest.raises(ConfigError, match="has no version 7"):
        api.load_student(7, work_dir=work_dir)


def test_files_that_are_not_what_was_registered_are_refused(
    open_run: Open, work_dir: Path, tmp_path: Path, trained: Trained
) -> None:
    lineage = open_run()
    register(lineage, trained.adapter, MEMORY, tmp_path / "a")
    with pytest.raises(ConfigError, match="--student"):
        Answerer.from_registry(TRACKING, work_dir, version=1)
    (stored,) = work_dir.rglob(MEMORY_FILE)
    memory_of(KEPT[1:]).save(stored)
    with pytest.raises(LineageError, match="the memory of version 1"):
        Answerer.from_registry(TRACKING, work_dir, version=1, model="micro-student")
    MEMORY.save(stored)
    other = Adapter(trained.adapter.factors, trained.adapter.rank, 1.0, "")
    (weights,) = work_dir.rglob("adapter_model.safetensors")
    MEMORY.save(save_adapter(other, weights.parent) / MEMORY_FILE)
    with pytest.raises(LineageError, match="the adapter of version 1"):
        Answerer.from_registry(TRACKING, work_dir, version=1, model="micro-student")


def test_ask_command_says_what_answered(open_run: Open, work_dir: Path, tmp_path: Path, trained: Trained) -> None:
    register(open_run(student=STUDENT), trained.adapter, MEMORY, tmp_path / "a")

    def ask(question: str, *more: str, typed: str = "") -> Any:
        return CliRunner().invoke(app, ["ask", *filter(None, [question]), "--work-dir", str(work_dir), *more], typed)

    refused = ask("Who?")
    assert isinstance(refused.exception, ConfigError)
    assert "preceptor promote student NUMBER" in str(refused.exception)
    Registry.open(TRACKING, work_dir).promote("student", 1)

    kept = KEPT[0].task.questions[0]
    asked = ask(kept.question)
    assert asked.exit_code == 0, asked.output
    answer, how, compare = asked.stdout.splitlines()
    assert answer == kept.answer
    assert how.startswith(
        f"From the memory of version 1 of the student: {KEPT[0].task.id} ({KEPT[0].task.document.title}),"
    )
    assert compare.startswith(f"To compare: {preceptor('ask')}")
    assert "--by weights" in compare
    learned = LEARNED.task.questions[0]
    shown = json.loads(ask(learned.question, "--json", "--version", "1").stdout)
    assert (shown["text"], shown["by"], shown["sources"], shown["version"]) == (learned.answer, "weights", [], 1)
    assert "From the weights of version 1" in ask(learned.question, "--by", "weights").stdout
    assert "--version 1" in ask(learned.question, "--by", "both", "--version", "1").stdout.splitlines()[-1]
    assert "has no version 7" in str(ask("Who?", "--version", "7").exception)
    assert ask(" ").exit_code == ask("").exit_code == 2
    several = ask("", "--json", typed=f"{kept.question}\n\n {learned.question}\n")
    given = [Answer.model_validate_json(line) for line in several.stdout.splitlines()]
    assert [(each.text, each.by) for each in given] == [(kept.answer, "memory"), (learned.answer, "weights")]
    assert ask("", typed=f"{kept.question}\n").stdout.splitlines() == [answer, how]

    strict = AnswerSettings(answer_format=AnswerFormat(), least_confidence=1.0)
    halved = Adapter({n: (a, b / 2) for n, (a, b) in trained.adapter.factors.items()}, 8, 16.0, "")
    number = register(open_run("strict", student=STUDENT), halved, MEMORY, tmp_path / "b", strict)
    unsure, why = ask(learned.question, "--version", str(number)).stdout.splitlines()[:2]
    shown = json.loads(ask(learned.question, "--version", str(number), "--json").stdout)
    assert (unsure, shown["text"], shown["by"], shown["sources"]) == (UNKNOWN, UNKNOWN, "unknown", [])
    assert repr(shown["guess"]) in why
    assert ask(kept.question, "--version", str(number)).stdout.splitlines()[0] == kept.answer

    night = tmp_path / "night.yaml"
    night.write_text((CONFIGS / "nights-demo.yaml").read_text() + "memory: {least_score: 1000.0}\n")
    assert "no passage of its memory was used" in ask(kept.question, "--config", str(night)).stdout
    assert ask(kept.question, "--config", str(CONFIGS / "nights-demo.yaml")).stdout.splitlines()[:2] == [answer, how]
    assert ask(kept.question, "--config", str(CONFIGS / "demo.yaml")).stdout.splitlines()[:2] == [answer, how]
    assert isinstance(ask("Who?", "--work-dir", str(tmp_path / "nowhere")).exception, ConfigError)
