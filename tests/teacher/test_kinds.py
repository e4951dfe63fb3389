from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evaluation.common.errors import ConfigError
from evaluation.tasks import Document
from teacher.kinds import SPA, STRATEGIES, STRATEGY, Kind, kinds, lines_of_kind, load_kind
from teacher.prompts import PROMPTS, PromptedConfig
from teacher.self_edit import Implication

DOCUMENT = Document(id="d", title="Mill", text="The mill in Ravensburg was opened in 1871 by Anton Keller.")
OWN = {"label": "timeline", "form": "lines", "instruction": "List all dates.", "cue": "Dates:\n"}


def written(place: Path, content: Any) -> str:
    place.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(place)


def test_every_kind_that_ships_is_a_prompt_that_tells_of_its_form() -> None:
    shipped = kinds()
    own = {"explain-child", "explain-student", "explain-expert", "table-statements", "faq", "tutorial", "not-stated"}
    assert {*SPA, STRATEGY, "implications", "rewrite", "self-qa", "entity-pairs", "entity-triples", *own} <= set(
        shipped
    )
    for name, kind in shipped.items():
        assert (kind.name, kind.template, load_kind(name)) == (name, PROMPTS[name], kind)
        assert PromptedConfig(prompt=name).prompt == name
        prompt = kind.prompt("Anton Keller").render(DOCUMENT)
        assert DOCUMENT.text in prompt
        assert "{" not in prompt
        assert ("Anton Keller" in prompt.partition("Passage:")[0]) is (kind.first is not None)
        assert (kind.form == "questions") == kind.template.cue.startswith("Question")
        assert not kind.template.cue.endswith(" ")
    assert len({kind.label for kind in shipped.values()}) == len(shipped)
    first = shipped[STRATEGY].first
    assert first == PROMPTS[STRATEGIES]


def test_the_kind_in_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    section = text.partition("## Kinds of training lines")[2]
    example = section.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "timeline.yaml").write_text(example, encoding="utf-8")
    kind = load_kind(str(tmp_path / "timeline.yaml"))
    assert "in 1871" in kind.prompt("in 1871").render(DOCUMENT)
    assert kind.first is not None


def test_items_of_a_first_step_are_its_lines_or_all_combinations() -> None:
    lines = [Implication(text=text) for text in ("Keller", "mill.", "Keller", "1871")]
    assert kinds()[STRATEGY].items(lines) == ("Keller", "mill", "1871")
    assert kinds()["entity-pairs"].items(lines) == ("Keller, mill", "Keller, 1871", "mill, 1871")
    assert kinds()["entity-triples"].items(lines) == ("Keller, mill, 1871",)
    assert kinds()["entity-triples"].items(lines[:2]) == ()


def test_a_kind_of_ones_own_is_a_file(tmp_path: Path) -> None:
    kind = load_kind(written(tmp_path / "timeline.yaml", OWN))
    assert (kind.name, kind.label, kind.form, kind.first) == ("timeline", "timeline", "lines", None)
    assert kind.template.render(DOCUMENT) == f"List all dates.\n\nPassage:\nMill\n{DOCUMENT.text}\n\nDates:\n"
    two = {
        **OWN,
        "instruction": "Write about {item}.",
        "first": {"name": "dates", "instruction": "List dates."},
        "combine": 2,
    }
    kind = load_kind(written(tmp_path / "two.yaml", two))
    assert kind.first is not None
    assert kind.first.render(DOCUMENT).startswith("List dates.\n\nPassage:")
    assert kind.prompt("1871, 1923").instruction == "Write about 1871, 1923.\n\n"


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (
            {**OWN, "form": "list", "lable": "x"},
            ["form must be 'lines', 'questions' or 'text'", "lable is an unknown key"],
        ),
        ({"instruction": "x"}, ["label is missing", "form is missing"]),
        ({**OWN, "instruction": "About {item}."}, ["{item}"]),
        ({**OWN, "first": {"name": "f"}}, ["{item}"]),
        ({**OWN, "text": "No place."}, ["placeholders"]),
        ({**OWN, "first": "x"}, ["first"]),
        (["x"], ["must be a mapping"]),
    ],
)
def test_all_mistakes_of_a_file_are_listed(content: Any, messages: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_kind(written(tmp_path / "wrong.yaml", content))
    for message in ("wrong.yaml", *messages):
        assert message in str(caught.value)


@pytest.mark.parametrize("name", ["implication", "absent.yaml", ""])
def test_unknown_kind_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"implications|absent\.yaml"):
        load_kind(name)


TEXT = """Here is an explanation of the passage:

**Explanation**

The mill is old.
It was opened in 1871.

## What came of it
It is a museum now, and "nobody grinds." But the wheel still tur"""


def test_texts_are_paragraphs_without_headings_and_cut_sentences() -> None:
    kind = kinds()["explain-child"]
    texts = ["The mill is old. It was opened in 1871.", 'It is a museum now, and "nobody grinds."']
    assert [line.text for line in lines_of_kind(kind, TEXT, finish_reason="length")] == texts
    whole = lines_of_kind(kind, TEXT)
    assert [line.text for line in whole] == [texts[0], f"{texts[1]} But the wheel still tur"]
    assert lines_of_kind(kind, "I'm sorry, but I cannot help with that.") == ()
    assert lines_of_kind(kind, "a cut sentence without an end", finish_reason="length") == ()
    thought = "<think>\nIt is\n\nold.\n</think>\nIt is old."
    assert lines_of_kind(kind, thought) == (Implication(text="It is old."),)


def test_lines_and_questions_are_read_by_the_parser() -> None:
    listed = "1. The mill is old.\n2. It was opened in 1871.\n3. It is a mus"
    assert len(lines_of_kind(kinds()["implications"], listed)) == 3
    assert len(lines_of_kind(kinds()["implications"], listed, finish_reason="length")) == 2
    faq = kinds()["faq"]
    prompt = faq.template.render(DOCUMENT)
    asked = " Who opened the mill?\nAnswer 1: Anton Keller.\nQuestion 2: When?\nAnswer 2: In 1871.\nThe mill is old."
    assert [line.answer for line in lines_of_kind(faq, asked, prompt)][:1] == ["Anton Keller."]
    assert all(line.answer is not None for line in lines_of_kind(faq, asked, prompt))
    assert lines_of_kind(faq, listed) == ()


@given(st.sampled_from(sorted(kinds())), st.text(max_size=300), st.sampled_from(["stop", "length"]))
def test_any_completion_gives_lines_or_none(name: str, completion: str, reason: Any) -> None:
    kind: Kind = kinds()[name]
    lines = lines_of_kind(kind, completion, kind.template.render(DOCUMENT), reason)
    assert all(line.text.strip() and "\n" not in line.text for line in lines)
