from __future__ import annotations

import textwrap

from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.sources.sections import Section, sections_of, statements_of
from evaluation.tasks import Document
from pipelines.inbox.intake import Intake
from pipelines.inbox.readers import READERS
from pipelines.inbox.readers.text import with_marks
from tests.pipelines.inbox.files import placed_pdf

BODY = "The loss falls with the number of steps, and no step is larger than the one before it was. "
LEFT = [
    "Abstract",
    f"We train a teacher that writes notes for a student. {BODY}",
    "1 Introduction",
    f"Notes are short, as Keller [2] shows. {BODY * 2}So it is.",
    "2 Method",
    "2.1 Loss",
    f"With a step of 0.1 we minimise {BODY}",
    "L(w) = |y - f(x)| + a ||w||^2 (1)",
    f"where a is a weight. {BODY}",
]
RIGHT = [
    "3 Results",
    f"The student answers 71.3 % of the questions. {BODY * 2}",
    "References",
    "[1] A. Moe. Learning to write. 2021.",
    "[2] B. Keller. Short notes, and what students make of them in the end. In Proceedings of Notes, 2019.",
    "Appendix A",
    f"Here are the prompts. {BODY}",
]


def paper() -> bytes:
    """Return a page of two columns, and a second page."""
    page = []
    for left, column in ((50.0, LEFT), (320.0, RIGHT)):
        height = 800.0
        for text in column:
            for line in textwrap.wrap(text, 52):
                page.append((left, height, line))
                height -= 11
            height -= 9
    return placed_pdf([page, [(50.0, 800.0, "More prompts stand on the second page.")]])


def read(limit: int, content: bytes | None = None) -> tuple[str, list[Section]]:
    text = "\n\n".join(block.text for block in with_marks(READERS["pdf"](content or paper()).blocks))
    return text, sections_of(Document(id="p", title="Notes for students", text=text), limit)


def test_paper_in_two_columns_has_sections_formulas_and_no_references() -> None:
    text, sections = read(500)
    assert [(part.heading, part.left_out) for part in sections] == [
        ("Abstract", ""),
        ("1 Introduction", ""),
        ("2 Method > 2.1 Loss", ""),
        ("3 Results", ""),
        ("References", "references"),
        ("Appendix A", ""),
    ]
    (method,) = [part for part in sections if "2 Method" in part.text]
    assert "L(w) = |y - f(x)| + a ||w||^2" in method.text
    (references,) = [part for part in sections if part.left_out]
    assert "[1] A. Moe" in references.text
    assert "[2] B. Keller. Short" in references.text
    assert not any("A. Moe" in part.text for part in sections if not part.left_out)
    assert [part.page for part in sections] == [1] * 6
    assert not any(statements_of(part) for part in sections)
    assert text[sections[-1].start :].startswith("Appendix A")
    assert sections[-1].text.endswith("More prompts stand on the second page.")


def test_headings_of_a_file_make_paths_and_pages_are_counted() -> None:
    parts = (
        "# Handbook",
        "## Refunds",
        BODY * 4,
        "### Cards",
        BODY * 4,
        "## Bibliography",
        "Moe 2021.",
        "## Annex",
        BODY,
    )
    text = "\n\n".join(parts)
    sections = sections_of(Document(id="h", title="Handbook", text=text), 500)
    assert [(part.heading, bool(part.left_out)) for part in sections] == [
        ("Refunds", False),
        ("Refunds > Cards", False),
        ("Bibliography", True),
        ("Annex", False),
    ]
    assert all(part.page is None for part in sections)


def test_intake_marks_headings_and_pages_where_it_is_asked() -> None:
    pages = [
        [(50.0, 800.0, "1 First"), (50.0, 760.0, "It is here.")],
        [(50.0, 800.0, "2 Second"), (50.0, 760.0, "So.")],
    ]
    for marks in (False, True):
        intake = Intake(marked=marks)
        intake.add_content(placed_pdf(pages), "a.pdf", "pdf", "a.pdf")
        (document,) = intake.documents
        found = [(part.heading, part.page) for part in sections_of(document.document, 20)]
        assert [page for _, page in found] == ([1, 2] if marks else [None, None])
        assert [heading for heading, _ in found] == ["1 First", "2 Second"]


PARTS = st.sampled_from(
    [
        "# A",
        "## B c",
        "References",
        "2 Method",
        BODY,
        BODY * 9,
        "x" * 700,
        "a | b\nc | 1\nd | 2",
        "␌3",
        "",
        "Caption:",
        "é ß",
    ]
)


@settings(deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=14).filter(lambda parts: any(map(str.strip, parts))), st.integers(60, 900))
def test_sections_have_all_of_the_text_in_order_and_fit(parts: list[str], limit: int) -> None:
    text = "\n\n".join(parts)
    sections = sections_of(Document(id="d", text=text), limit)
    rest, last = text, len(text)
    for part in reversed(sections):
        assert part.text.strip()
        assert len(part.text) == part.end - part.start <= limit
        assert part.end <= last
        rest, last = rest[: part.start] + rest[part.end :], part.start
    assert "".join(line for line in rest.splitlines() if not line.startswith("␌")).strip() == ""
    for part in sections:
        assert all(part.start <= each.start < each.end <= part.end for each in statements_of(part))
