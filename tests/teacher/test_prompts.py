from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tokenizers.processors import TemplateProcessing

from evaluation.common.errors import ConfigError, ModelError
from evaluation.tasks import Document, KnowledgeTask, Question
from teacher.algorithms.grpo import GroupRelativeConfig
from teacher.algorithms.rest_em import RestEmConfig
from teacher.config import LearningConfig, TeacherConfig
from teacher.kinds import kinds
from teacher.prompts import PROMPTS, PromptTemplate, prompt_template, prompt_token_ids
from tests.teacher.factories import tiny_base, tiny_chat_base

DOCUMENT = Document(id="d1", title="Estonian language", text="Writings in Estonian became significant.")
TEXTS = st.text(min_size=1, max_size=60).filter(str.strip)


def test_render_micro_forms_are_exact() -> None:
    expected = {
        "micro-implications": "Passage: {}\nImplications:\n",
        "micro-rewrite": "Passage: {}\nRewritten passages:\n",
        "micro-self-qa": "Passage: {}\nQuestions and answers:\n",
    }
    for name, text in expected.items():
        assert prompt_template(name).render(DOCUMENT) == text.format(DOCUMENT.text)


@pytest.mark.parametrize("name", ["implications", "rewrite", "self-qa"])
def test_render_shows_title_above_passage_and_drops_an_empty_title(name: str) -> None:
    template = prompt_template(name)
    assert f"Passage:\n{DOCUMENT.title}\n{DOCUMENT.text}\n\n" in template.render(DOCUMENT)
    untitled = template.render(DOCUMENT.model_copy(update={"title": ""}))
    assert f"Passage:\n{DOCUMENT.text}\n\n" in untitled


@given(title=TEXTS, passage=TEXTS, name=st.sampled_from(sorted(PROMPTS)), other=TEXTS)
def test_render_depends_on_title_and_passage_alone(title: str, passage: str, name: str, other: str) -> None:
    """A document has no questions, so a prompt cannot leak any; its only other input is the step budget."""
    bare = Document(id="a", title=title, text=passage)
    task = KnowledgeTask(
        document=Document(id="b", title=title, text=passage, source=other, entities=(other,)),
        questions=(Question(question=other, answer=other),),
    )
    rendered = PROMPTS[name].render(bare, 7)
    assert PROMPTS[name].render(task.document, 7) == rendered
    template = PROMPTS[name]
    empty = template.render(Document(id="c", title="-", text="+"), 7)
    shown = rendered != template.render(bare.model_copy(update={"title": ""}), 7)
    assert len(rendered) == len(empty) - 1 + len(passage) + ("{title}" in template.text) * (
        len(title) - 1 if shown else -2
    )


def test_worked_example_stands_in_front_and_a_cue_begins_the_assistants_answer() -> None:
    template = prompt_template("worked-self-qa")
    plain = template.render(DOCUMENT)
    assert plain.count(template.instruction) == 1
    assert plain.endswith(f"Passage: {DOCUMENT.title}\n{DOCUMENT.text}\nQuestion 1:")
    assert plain.count("\nPassage: ") == 2
    tokenizer = tiny_base().tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}{% if enable_thinking or thinking %}<think>{% endif %}"
    )
    for name in ("worked-self-qa", "self-qa"):
        chat = prompt_template(name).render_chat(DOCUMENT, tokenizer)
        *_, user, answer = chat.split("[")
        assert user.startswith("user]")
        assert user.rstrip().endswith(DOCUMENT.text)
        assert answer == "assistant]Question 1:"
        assert chat.count("[user]") == (2 if name == "worked-self-qa" else 1)
    titled = Document(id="d", title="Rules > Visitors", text="# Visitors\nThey sign in.")
    assert template.render(titled).count("Visitors") == 1


def test_render_leaves_braces_of_the_document() -> None:
    document = Document(id="d", title="{passage}", text="a {title} {0} }{")
    assert "\n{passage}\na {title} {0} }{\n" in prompt_template("implications").render(document)


@pytest.mark.parametrize(
    "text",
    [
        "no place",
        "{passage} {budget} {budget}",
        "{passage} {passage}",
        "{title}",
        "{passage} {questions}",
        "{passage} {}",
    ],
)
def test_template_refuses_other_placeholders(text: str) -> None:
    with pytest.raises(ValidationError, match="placeholders"):
        PromptTemplate(name="x", text=text)


def test_prompt_template_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'summary'.*implications"):
        prompt_template("summary")
    with pytest.raises(ValidationError, match="summary"):
        TeacherConfig(model="m", prompt="summary")


def test_prompt_of_ones_own_is_read_once_and_its_text_stays(tmp_path: Path) -> None:
    text = "Note on {title}:\n{passage}\nFacts:\n"
    (tmp_path / "mine.txt").write_text(text)
    given: list[Any] = [{"file": str(tmp_path / "mine.txt")}, {"text": text}, text]
    configs = [TeacherConfig.model_validate({"model": "m", "prompt": prompt}) for prompt in given]
    assert {config.prompt for config in configs} == {text}
    (tmp_path / "mine.txt").unlink()
    assert prompt_template(configs[0].prompt).render(DOCUMENT).endswith("significant.\nFacts:\n")
    assert TeacherConfig.model_validate(configs[0].model_dump(mode="json")) == configs[0]
    for wrong in (
        {"file": "absent.txt"},
        {"text": "No place."},
        {"text": "{passage} {x}"},
        "{passage} {x}",
        {"file": 1},
    ):
        with pytest.raises(ValidationError, match=r"prompt|placeholders"):
            TeacherConfig.model_validate({"model": "m", "prompt": wrong})


EXAMPLES = [
    {"title": "Mill", "passage": "A mill {opened}.", "lines": "1. The mill opened."},
    {"passage": "A lake.", "lines": "Facts:\n1. It is a lake.\n2. It is wet.\n"},
]


def in_file(place: Path, content: Any) -> str:
    place.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(place)


def test_examples_in_a_file_stand_before_the_document_as_text_or_as_turns(tmp_path: Path) -> None:
    own = {"instruction": "List facts.", "text": "Passage: {title}\n{passage}", "cue": "Facts:\n", "examples": EXAMPLES}
    given = {"file": in_file(tmp_path / "own.yaml", own)}
    config = TeacherConfig.model_validate({"model": "m", "prompt": given})
    (tmp_path / "own.yaml").unlink()
    assert TeacherConfig.model_validate(config.model_dump(mode="json")) == config
    template = prompt_template(config.prompt)
    assert template.render(DOCUMENT) == (
        "List facts.\n\nPassage: Mill\nA mill {opened}.\nFacts:\n1. The mill opened.\n\n"
        "Passage: A lake.\nFacts:\n1. It is a lake.\n2. It is wet.\n\n"
        f"Passage: {DOCUMENT.title}\n{DOCUMENT.text}\nFacts:\n"
    )
    assert template.stop == "\nPassage:"
    tokenizer = tiny_chat_base().tokenizer
    *shown, asked, answer = template.render_chat(DOCUMENT, tokenizer).split(" <|im_end|>\n")
    assert [turn.partition(" ")[0] for turn in shown] == ["user", "assistant"] * 2
    assert shown[3] == "assistant Facts:\n1. It is a lake.\n2. It is wet."
    assert asked.startswith("user List facts.\n\nPassage: Estonian")
    assert answer == "assistant Facts:"


@pytest.mark.parametrize("name", sorted(kinds()))
def test_every_kind_takes_examples_of_ones_own(name: str, tmp_path: Path) -> None:
    given = {"name": name, "examples": in_file(tmp_path / "mine.yaml", EXAMPLES)}
    template = prompt_template(TeacherConfig.model_validate({"model": "m", "prompt": given}).prompt)
    base = prompt_template(name)
    assert template.render(DOCUMENT).endswith(base.render(DOCUMENT).removeprefix(base.instruction))
    assert template.render(DOCUMENT).count("Passage:") == 3
    assert template.name.startswith(f"{name}-")


def test_all_mistakes_of_a_prompt_file_are_listed(tmp_path: Path) -> None:
    wrong = {"txt": "x", "examples": [{"passage": "p"}, {"passage": "p", "lines": " ", "titel": "t"}]}
    with pytest.raises(ValidationError) as caught:
        TeacherConfig.model_validate({"model": "m", "prompt": {"file": in_file(tmp_path / "w.yaml", wrong)}})
    for part in ("text is missing", "txt is an unknown key", "examples.0.lines is missing", "examples.1.titel"):
        assert part in str(caught.value)
    bare = {"text": "{passage}", "examples": EXAMPLES}
    for content in (bare, [1]):
        with pytest.raises(ValidationError, match=r"begins with words|valid dictionary"):
            TeacherConfig.model_validate({"model": "m", "prompt": {"file": in_file(tmp_path / "b.yaml", content)}})
    with pytest.raises(ValidationError, match="allowed are a name"):
        TeacherConfig.model_validate({"model": "m", "prompt": {"name": "implicatons", "examples": "x.yaml"}})


def test_render_chat_uses_the_template_up_to_the_answer_with_one_opening_token() -> None:
    tokenizer = tiny_base().tokenizer
    with pytest.raises(ModelError, match="chat template"):
        prompt_template("implications").render_chat(DOCUMENT, tokenizer)
    tokenizer.bos_token = "<unk>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", 1)]
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %} [{{ m.role }}] {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} [assistant]{% endif %}"
    )
    template = PromptTemplate(name="t", text="w1 {passage} w2")
    chat = template.render_chat(Document(id="d", text="w3"), tokenizer)
    assert chat == "<unk> [user] w1 w3 w2 [assistant]"
    assert prompt_token_ids(tokenizer, chat) == [2, 2, 4, 6, 5, 2]  # one opening token, then [user] as unknown
    assert prompt_token_ids(tokenizer, "w1 w3") == [2, 4, 6]  # opening token added, closing token taken off


def test_learning_config_is_discriminated_by_algorithm() -> None:
    adapter: TypeAdapter[LearningConfig] = TypeAdapter(LearningConfig)
    assert adapter.validate_python({"algorithm": "rest_em", "keep": 2}) == RestEmConfig(keep=2)
    assert adapter.validate_python({"algorithm": "grpo"}) == GroupRelativeConfig()
    for wrong in ({"algorithm": "ppo"}, {"algorithm": "rest_em", "clip": 0.1}, {"algorithm": "rest_em", "keep": 0}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


def test_render_states_the_budget_or_omits_its_line() -> None:
    document = Document(id="d", text="{budget} {title}")
    limited, unlimited = (prompt_template("grid-spec").render(document, budget) for budget in (120, None))
    assert "at most 120 steps" in limited
    assert set(limited.splitlines()) - set(unlimited.splitlines()) == {
        "- The training may take at most 120 steps in all; more is refused."
    }
    assert "{budget} {title}" in unlimited, "the document's own braces stay"
    plain = prompt_template("implications")
    assert plain.render(document, 120) == plain.render(document)
