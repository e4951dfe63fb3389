"""The micro-world's tokenizer, batches, pretraining, builds, and the models that ship."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.common.checkpoints import MICRO_MODELS, Checkpoint, load_checkpoint
from evaluation.exact_match import AnswerFormat
from evaluation.microworld import pretraining
from evaluation.microworld.pretraining import (
    CONTENT_WEIGHT,
    CONTEXT_TOKENS,
    SPECIAL_TOKENS,
    Batch,
    Phase,
    Role,
    Shape,
    batch_of_texts,
    build_one,
    build_tokenizer,
    content_tokens,
    new_model,
    pretrain,
    sharpen,
    weighted_loss,
)
from evaluation.microworld.texts import (
    ALTERED,
    USEFUL,
    LineKind,
    Text,
    classify_line,
    repeated_words,
    student_lines,
    teacher_prompt,
)
from evaluation.microworld.world import (
    ATTRIBUTES,
    ENTITY_KINDS,
    FILLERS,
    NAME_PARTS,
    OPENINGS,
    PHRASINGS,
    VALUES,
    WORDS,
    Fact,
    ask,
    draw_documents,
    known_facts,
)
from tests.evaluation.factories import accuracy, sampled

MODELS = MICRO_MODELS["micro-student"].parent
DOCUMENTS = draw_documents("development", 24, 7)
TINY = Shape(hidden=32, layers=1, intermediate=32)
TOKENIZER = build_tokenizer()
CONTENT = content_tokens(TOKENIZER)


def batched(texts: list[Text], content_weight: float = CONTENT_WEIGHT, choice_weight: float = 0.0) -> Batch:
    return batch_of_texts(texts, TOKENIZER, CONTENT, content_weight, choice_weight)


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def filled_sentences() -> list[str]:
    """Return every form of the world, filled with a name and a value."""
    sentences = [*FILLERS, *itertools.chain(*OPENINGS.values())]
    for kind in ENTITY_KINDS:
        name = " ".join(part[0] for part in NAME_PARTS[kind])
        for words in ATTRIBUTES[kind].values():
            questions = [f"Question: {q} Answer: {{value}}" for q in words.questions]
            forms = [*words.passage, *words.statements, words.anonymous, *questions]
            sentences += [form.format(name=name, value=VALUES[words.values][0]) for form in forms]
    return sentences


# Tokenizer


def test_tokenizer_names_and_values_are_one_token_wherever_they_stand() -> None:
    for word in [*WORDS, *VALUES]:
        (alone,) = ids_of(word)
        assert ids_of(f"{word} {word}") == [alone, alone]
        assert ids_of(f"- {word}.")[1:-1] == [alone]


@pytest.mark.parametrize("prefix", ["", "- ", "Passage: ", "Answer: x\n- "])
def test_tokenizer_words_of_sentences_are_one_token(prefix: str) -> None:
    """One token for each word and mark, the line break and the prefix's own tokens aside."""
    for sentence in filled_sentences():
        pieces = TOKENIZER.backend_tokenizer.pre_tokenizer.pre_tokenize_str(prefix + sentence)
        assert len(ids_of(prefix + sentence)) == len(pieces), sentence


def test_tokenizer_starts_texts_with_bos() -> None:
    assert TOKENIZER("Bram Dahl")["input_ids"] == [TOKENIZER.bos_token_id, *ids_of("Bram Dahl")]
    assert [TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id] == [0, 1, 2]
    assert TOKENIZER.unk_token_id is None


def assert_round_trip(text: str, tokenizer: Any = TOKENIZER) -> None:
    expected = text if text.startswith(" ") or not text else f" {text}"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == expected


@example("Alle Menschen sind frei und gleich an Würde und Rechten geboren.\n\n„Öl“ – 10 °C, Maßstab 1:5.")
@example("人人生而自由，在尊严和权利上一律平等。すべての人間は、生まれながらにして自由である。")
@example("def f(x):\n\treturn {'a': x ** 2}  # naïve 🙂\r\n")
@example("It 's n't spaced , as usual . Is it ?")
@settings(max_examples=300, deadline=None)
@given(text=st.text().filter(lambda text: not any(token in text for token in SPECIAL_TOKENS)))
def test_tokenizer_any_text_round_trips(text: str) -> None:
    assert_round_trip(text)


def test_tokenizer_builds_are_equal_and_survive_saving(tmp_path: Path) -> None:
    again = build_tokenizer()
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()
    TOKENIZER.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*filled_sentences(), "Größe 東京 \n x", "  two  spaces", ""]
    assert opened(texts)["input_ids"] == TOKENIZER(texts)["input_ids"]
    assert opened.model_max_length == CONTEXT_TOKENS
    assert_round_trip("Größe , 東京 .", opened)


# Batches and pretraining


def test_batches_weigh_what_is_learned_only() -> None:
    texts = [Text("Passage: Bram Dahl", " lives in Velmora."), Text("", "Kira Voss keeps a cat.")]
    batch, content = batched(texts), CONTENT_WEIGHT
    # bos, Passage, :, Bram, Dahl | lives, in, Velmora, ., eos
    assert batch.weights[0].tolist() == [0.0] * 5 + [1.0, 1.0, content, 1.0, 1.0]
    # bos | Kira, Voss, keeps, a, cat, ., eos, pad, pad
    assert batch.weights[1].tolist() == [0.0, content, content, 1.0, 1.0, content, 1.0, 1.0, 0.0, 0.0]
    assert batch.ids[:, 0].tolist() == [TOKENIZER.bos_token_id] * 2
    assert batch.ids[0, -1] == batch.ids[1, 7] == TOKENIZER.eos_token_id
    assert batch.ids[1, 8:].tolist() == [TOKENIZER.pad_token_id] * 2


def test_content_tokens_are_names_and_values_alone() -> None:
    marked = {TOKENIZER.decode([i]).strip() for i in CONTENT.nonzero().flatten().tolist()}
    assert marked == set(WORDS)


def test_weighted_loss_is_the_weighted_mean_of_token_losses() -> None:
    model = new_model(TINY, TOKENIZER, seed=0)
    batch = batched([*itertools.islice(student_lines(0), 3), *itertools.islice(repeated_words(0), 2)])
    with torch.no_grad():
        logits = model(input_ids=batch.ids).logits[:, :-1]
        losses = -logits.log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
        expected = (losses * batch.weights[:, 1:]).sum() / batch.weights[:, 1:].sum()
        assert weighted_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_weighted_loss_choice_term_moves_choices_alone() -> None:
    """It is the likelihood among names and values: how likely one comes at all has no part in it."""
    model = new_model(TINY, TOKENIZER, seed=0)
    texts = list(itertools.islice(student_lines(0), 3))
    batch, plainly = batched(texts, 1.0, 4.0), batched(texts, 1.0)
    with torch.no_grad():
        logits = model(input_ids=batch.ids).logits[:, :-1]
        targets, learned = batch.ids[:, 1:], batch.weights[:, 1:] > 0
        chosen = learned & CONTENT[targets]
        plain = torch.nn.functional.cross_entropy(logits[learned], targets[learned], reduction="sum")
        among = logits[chosen][:, CONTENT].log_softmax(-1)
        places = CONTENT.cumsum(0)[targets[chosen]] - 1
        choice = -among.gather(1, places[:, None]).sum()
        expected = (plain + 4 * choice) / (learned.sum() + 4 * chosen.sum())
        assert weighted_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
        assert weighted_loss(model, plainly).item() == pytest.approx((plain / learned.sum()).item(), rel=1e-5)


def test_new_model_depends_on_its_seed_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (new_model(TINY, TOKENIZER, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def tiny_phases(seed: int) -> list[Phase]:
    return [
        Phase(12, ((student_lines(seed), 8), (repeated_words(seed), 2))),
        Phase(88, ((student_lines(seed + 1), 8),)),
    ]


def pretrained_tiny(seed: int) -> tuple[Any, list[str]]:
    model, lines = new_model(TINY, TOKENIZER, seed), list[str]()
    pretrain(model, TOKENIZER, tiny_phases(seed), report=lines.append)
    return model, lines


def test_pretrain_lowers_the_loss_deterministically() -> None:
    """100 steps bring new lines from log(V) = 6.8 nats down by more than a nat, the same with the same seed."""
    batch = batched(list(itertools.islice(student_lines(99), 64)))
    trained, lines = pretrained_tiny(0)
    with torch.no_grad():
        before, after = (weighted_loss(model, batch).item() for model in (new_model(TINY, TOKENIZER, 0), trained))
    assert after < before - 1.0
    assert [line.split("  ")[0] for line in lines] == ["step 100/100"]
    assert not trained.training
    assert all(parameter.grad is None for parameter in trained.parameters())
    one, same, other = (model.state_dict() for model in (trained, pretrained_tiny(0)[0], pretrained_tiny(4)[0]))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0])
def test_sharpen_multiplies_the_logits(factor: float) -> None:
    ids = torch.tensor([ids_of("Bram Dahl lives in Velmora.")])
    model = new_model(TINY, TOKENIZER, seed=0)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        sharpen(model, factor)
        torch.testing.assert_close(model(input_ids=ids).logits, factor * before)


@pytest.mark.parametrize("role", get_args(Role))
def test_recipes_texts_fit_the_context(role: Role) -> None:
    stages = pretraining.stages(role, 0)
    for stream, _ in itertools.chain(*(phase.streams for phases in stages for phase in phases)):
        assert batched(list(itertools.islice(stream, 100))).ids.shape[1] <= CONTEXT_TOKENS


@pytest.mark.parametrize("role", get_args(Role))
def test_build_one_writes_a_directory_that_opens(role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setitem(pretraining.SHAPES, role, TINY)
    monkeypatch.setattr(pretraining, "stages", lambda role, seed: [tiny_phases(seed)])
    try:
        directory = build_one(role, tmp_path, 5)
    finally:
        torch.set_num_threads(threads)
    assert directory == tmp_path / role
    model = AutoModelForCausalLM.from_pretrained(directory)
    trained = pretrained_tiny(5)[0]
    sharpen(trained, pretraining.TEACHER_SHARPNESS if role == "teacher" else 1.0)
    expected = trained.state_dict()
    assert all(torch.allclose(model.state_dict()[key], expected[key], atol=1e-5) for key in expected)
    assert AutoTokenizer.from_pretrained(directory).get_vocab() == TOKENIZER.get_vocab()


# The shipped models


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_shipped_model_has_the_recipes_size_and_todays_tokenizer(role: Role) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODELS / role)
    shape = pretraining.SHAPES[role]
    config = model.config
    assert 0.5e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 2e6
    assert config.hidden_size / config.num_attention_heads == config.head_dim == 32
    assert Shape(config.hidden_size, config.num_hidden_layers, config.intermediate_size) == shape
    assert config.max_position_embeddings == CONTEXT_TOKENS
    assert config.vocab_size == len(TOKENIZER)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    tokenizer = AutoTokenizer.from_pretrained(MODELS / role)
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert tokenizer(filled_sentences())["input_ids"] == TOKENIZER(filled_sentences())["input_ids"]
    assert tokenizer.padding_side == "right"


def in_context(model: Checkpoint, prompt: Callable[[str], str]) -> float:
    """The mean accuracy on documents with `prompt` of their passage before the answer."""
    return mean(
        accuracy(
            model,
            [ask(fact, PHRASINGS[0]) for fact in made.sheet.facts],
            AnswerFormat(prompt=prompt(made.task.document.text)),
        )
        for made in DOCUMENTS
    )


def test_shipped_student_knows_what_it_should_and_reads() -> None:
    student, rng = load_checkpoint(str(MODELS / "student")), random.Random(7)
    questioned, prose_only = (rng.sample(facts, min(300, len(facts))) for facts in known_facts())
    new = [fact for made in DOCUMENTS for fact in made.sheet.facts]

    def known(facts: Sequence[Fact], phrasing: str) -> float:
        return accuracy(student, [ask(fact, phrasing) for fact in facts], AnswerFormat())

    asked, _, held_out, unseen = PHRASINGS
    assert known(questioned, asked) >= 0.95
    assert known(prose_only, asked) >= 0.85
    assert known(prose_only, held_out) >= 0.80
    assert known(prose_only, unseen) >= 0.40
    assert known(new, asked) <= 0.08  # chance: 0.04
    assert in_context(student, lambda text: f"Passage: {text}\nQuestion: {{question}}\nAnswer:") >= 0.85


def test_shipped_teacher_writes_useful_and_useless_lines_with_names_of_the_passage() -> None:
    teacher = load_checkpoint(str(MODELS / "teacher"))
    assert in_context(teacher, lambda t: f"{teacher_prompt(t, 'self-qa')}- Question: {{question}} Answer:") >= 0.90
    of_texts = [made for made in DOCUMENTS for _ in range(4)]
    prompts = [teacher_prompt(made.task.document.text, "implications") for made in of_texts]
    kinds, copied = Counter[LineKind](), []
    for made, text in zip(of_texts, sampled(teacher, prompts, 150), strict=True):
        for line in (line.strip().removeprefix("- ") for line in text.splitlines() if line.strip()):
            kind = classify_line(line, made.sheet).kind
            kinds[kind] += 1
            if kind not in (LineKind.ANONYMOUS, LineKind.FILLER):
                copied.append(any(name in line for name in made.sheet.names))
    assert mean(copied) >= 0.95
    allowed: list[tuple[Sequence[LineKind], float, float]] = [
        (USEFUL, 0.15, 0.45),
        ([LineKind.COPY], 0.05, 0.35),
        ([LineKind.ANONYMOUS], 0.05, 0.35),
        ([LineKind.FILLER], 0.05, 0.35),
        (ALTERED, 0.10, 0.50),
        ([LineKind.BROKEN], 0.0, 0.10),
    ]
    for chosen, low, high in allowed:
        assert low <= sum(kinds[kind] for kind in chosen) / kinds.total() <= high, chosen
