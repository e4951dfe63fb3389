"""Readers of PDF, office files, tables, mail and books."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.inbox.readers import READERS, SUFFIXES
from pipelines.inbox.readers.html import HTML
from pipelines.inbox.readers.text import Block, Extract, UnreadableError
from tests.pipelines.inbox.files import PAGES, changed_pdf, pdf, word_file

read_pdf, read_word = READERS["pdf"], READERS["docx"]


def texts(found: Extract) -> list[str]:
    return [block.text for block in found.blocks]


# PDF


def page(stream: str, *objects: str, fonts: str = "/Encoding /WinAnsiEncoding", extra: str = "") -> bytes:
    """Return a PDF of one page with a content stream, a font and further objects from number 6."""
    own = [
        f"<< /Type /Catalog /Pages 2 0 R {extra if 'AcroForm' in extra else ''} >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 5 0 R /Resources << /Font << /F 4 0 R >> "
        f"/XObject << /I 6 0 R >> >> {'' if not objects else '/Annots [' + extra.partition('%')[2] + ']'} >>",
        f"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica {fonts} >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
    ]
    numbered = "".join(f"{i} 0 obj\n{body}\nendobj\n" for i, body in enumerate([*own, *objects], start=1))
    return f"%PDF-1.7\n{numbered}trailer\n<< /Root 1 0 R >>\n%%EOF\n".encode("latin-1")


def shown(text: str, x: int = 50, y: int = 700, before: str = "", size: float = 12) -> str:
    return f"q BT {before} /F {size} Tf {x} {y} Td ({text}) Tj ET Q\n"


def test_pdf_is_read_in_paragraphs_with_headings_from_its_outline() -> None:
    content = changed_pdf(pdf(PAGES), title="Refund rules", outline={"Chapter one": 0, "Chapter two": 1, "Nowhere": 1})
    assert read_pdf(content) == Extract(
        (
            Block("Chapter one", 1, page=1),
            Block("Refunds are paid within ten days after the parcel has come back to us.", page=1),
            Block("Cards come first (always).", page=1),
            Block("Chapter two", 1, page=2),
            Block("Gift cards are not refunded.", page=2),
        ),
        title="Refund rules",
    )


def test_pages_without_text_are_noted_and_scans_refused() -> None:
    found = read_pdf(pdf([["Text."], [], ["More."], []]))
    assert texts(found) == ["Text.", "More."]
    assert len(found.notes) == 1
    assert "(2, 4)" in found.notes[0]
    with pytest.raises(UnreadableError, match="has 2 pages and no text: it is a scan"):
        read_pdf(pdf([[], []]))


def test_pdf_with_a_password_is_refused_and_one_that_opens_without_is_read() -> None:
    with pytest.raises(UnreadableError, match="encrypted and needs a password"):
        read_pdf(changed_pdf(pdf(PAGES), user_password="secret"))
    assert texts(read_pdf(changed_pdf(pdf(PAGES), user_password="")))[-1] == "Gift cards are not refunded."


BLACK, IMAGE = "0 g 40 690 300 30 re f\n", "q 300 0 0 30 40 690 cm /I Do Q\n"
PIXELS = (
    "<< /Type /XObject /Subtype /Image /Width 304 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 1 /Length 38 >>"
)


@pytest.mark.parametrize(
    ("drawn", "seen"),
    [
        (shown("Gate 7731", before="3 Tr"), False),
        (shown("Gate 7731", before="1 g"), False),
        (shown("Gate 7731", before="0.99 0.99 0.99 rg"), False),
        (shown("Gate 7731", x=-300), False),
        (shown("Gate 7731", y=900), False),
        (shown("Gate 7731") + BLACK, False),
        (shown("Gate 7731", before="0.6 g"), True),
        (BLACK + shown("Gate 7731", before="1 g"), True),
        (IMAGE + shown("Gate 7731", before="3 Tr"), True),
    ],
    ids=["invisible", "white", "almost-white", "left", "above", "covered", "grey", "white-on-black", "layer-of-a-scan"],
)
def test_text_that_nobody_sees_is_left_out_and_counted(drawn: str, seen: bool) -> None:
    content = page(shown("Open.", y=500) + drawn, f"{PIXELS}\nstream\n{'U' * 38}\nendstream")
    found = read_pdf(content)
    assert "".join(sorted(texts(found))) == ("Gate 7731Open." if seen else "Open.")
    assert any("8 characters" in note for note in found.notes) is not seen


def test_values_of_forms_and_text_of_annotations_are_read_and_comments_counted() -> None:
    notes = (
        "<< /Subtype /Widget /FT /Tx /T (berth) /V (Berth seven) /Rect [72 600 300 620] >>",
        "<< /Subtype /Widget /FT /Tx /T (empty) /Rect [72 500 300 520] >>",
        "<< /Subtype /Widget /FT /Tx /T (secret) /V (unseen) /F 2 /Rect [72 500 300 520] >>",
        "<< /Subtype /FreeText /Contents (Berth nine is closed.) /Rect [72 400 300 420] /DA (/F 12 Tf) >>",
        "<< /Subtype /Text /Contents (Ask Ines) /Rect [72 300 90 320] >>",
    )
    places = " ".join(f"{6 + i} 0 R" for i in range(len(notes)))
    found = read_pdf(page(shown("Permit"), *notes, extra=f"/AcroForm << /Fields [{places}] >> %{places}"))
    assert texts(found) == ["Permit", "berth: Berth seven", "Berth nine is closed."]
    assert found.notes == ("left out: 1 comments",)


@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [
        ("an adap-", "tation plan", "an adaptation plan"),
        ("the well-", "known rule", "the well-known rule"),
        ("by Anne-", "Marie Roth", "by Anne-Marie Roth"),
        ("type A-", "320 flies", "type A-320 flies"),
        ("Re-elect her, re-", "elect him", "Re-elect her, re-elect him"),
    ],
)
def test_words_cut_by_a_line_end_are_joined(first: str, second: str, whole: str) -> None:
    assert texts(read_pdf(pdf([[f"Long enough for a line, {first}", f"{second} follow in it."]]))) == [
        f"Long enough for a line, {whole} follow in it."
    ]


def test_rows_of_a_table_stay_apart() -> None:
    rows = [("Berth", "Depth", "Owner"), ("One", "4 m", "Roth"), ("Two", "", "Sand")]
    stream = "".join(shown(c, 50 + 120 * x, 700 - 20 * y) for y, row in enumerate(rows) for x, c in enumerate(row) if c)
    assert texts(read_pdf(page(stream))) == ["Berth | Depth | Owner", "One | 4 m | Roth", "Two | Sand"]


def test_running_headers_are_read_once_and_counted() -> None:
    found = read_pdf(
        pdf(
            [
                ["Harbour rules", f"The {each} quay is open to boats.", f"Page {i} of 4"]
                for i, each in enumerate(["east", "west", "north", "south"])
            ]
        )
    )
    assert texts(found).count("Harbour rules") == 1
    assert sum("quay" in text for text in texts(found)) == 4
    assert found.notes == ("left out: 6 running headers and footers",)


def test_text_without_unicode_values_is_refused_by_name() -> None:
    names = (
        "/Encoding << /Type /Encoding /Differences [65 /g35 /g36 /g37] >> /FirstChar 65 /LastChar 67 /Widths [9 9 9]"
    )
    with pytest.raises(UnreadableError, match="does not decode"):
        read_pdf(page(shown("ABBA CAB BACA"), fonts=names))


# Office Open XML

RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
STRICT = "http://purl.oclc.org/ooxml"
DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
SLIDE = "http://schemas.openxmlformats.org/presentationml/2006/main"


def archive(parts: Mapping[str, str]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as made:
        for name, text in parts.items():
            made.writestr(name, text)
    return written.getvalue()


def links(*targets: tuple[str, str], base: str = RELATIONS) -> str:
    each = (f'<Relationship Id="r{i}" Type="{base}/{kind}" Target="{name}"/>' for i, (kind, name) in enumerate(targets))
    return f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{"".join(each)}</Relationships>'


def word(body: str, *, base: str = RELATIONS, space: str = WORD, **parts: str) -> bytes:
    """Return a DOCX file with a body and further parts by kind of relation, each the content of its root element."""
    named = {f"word/{kind}.xml": f'<w:{kind} xmlns:w="{space}">{text}</w:{kind}>' for kind, text in parts.items()}
    return archive(
        {
            "_rels/.rels": links(("officeDocument", "word/document.xml"), base=base),
            "word/_rels/document.xml.rels": links(*((kind, f"{kind}.xml") for kind in parts), base=base),
            "word/document.xml": f'<w:document xmlns:w="{space}" xmlns:r="{RELATIONS}" xmlns:mc="mc" xmlns:m="m">'
            f"<w:body>{body}</w:body></w:document>",
            **named,
        }
    )


def run(text: str, properties: str = "") -> str:
    return f"<w:r><w:rPr>{properties}</w:rPr><w:t xml:space='preserve'>{text}</w:t></w:r>"


def para(*runs: str, style: str = "", properties: str = "") -> str:
    named = f"<w:pStyle w:val='{style}'/>" if style else ""
    return f"<w:p><w:pPr>{named}{properties}</w:pPr>{''.join(runs)}</w:p>"


BOX = f"<w:txbxContent>{para(run('In a box.'))}</w:txbxContent>"
BOX_TWICE = f"<mc:AlternateContent><mc:Choice>{BOX}</mc:Choice><mc:Fallback>{BOX}</mc:Fallback></mc:AlternateContent>"
NUMBERED = ["Article 3 a", "3.a) b", "3.b) c", "Article 4 d"]
FORMULA = (
    "<m:oMath><m:r><m:t>v=</m:t></m:r><m:f><m:num><m:r><m:t>s</m:t></m:r></m:num>"
    "<m:den><m:r><m:t>t</m:t></m:r></m:den></m:f></m:oMath>"
)
STYLES = (
    "<w:style w:styleId='H'><w:name w:val='heading 2'/></w:style>"
    "<w:style w:styleId='Kapitel'><w:name w:val='Kapitel'/><w:basedOn w:val='H'/></w:style>"
    "<w:style w:styleId='Loop'><w:name w:val='Loop'/><w:basedOn w:val='Loop'/></w:style>"
    "<w:style w:styleId='Out'><w:name w:val='Out'/><w:pPr><w:outlineLvl w:val='0'/></w:pPr></w:style>"
    "<w:style w:styleId='Gone'><w:name w:val='Gone'/><w:rPr><w:vanish/></w:rPr></w:style>"
)
LISTS = (
    "<w:abstractNum w:abstractNumId='5'>"
    "<w:lvl w:ilvl='0'><w:start w:val='3'/><w:numFmt w:val='decimal'/><w:lvlText w:val='Article %1'/></w:lvl>"
    "<w:lvl w:ilvl='1'><w:numFmt w:val='lowerLetter'/><w:lvlText w:val='%1.%2)'/></w:lvl></w:abstractNum>"
    "<w:num w:numId='1'><w:abstractNumId w:val='5'/></w:num>"
)


def item(text: str, depth: int) -> str:
    return para(run(text), properties=f"<w:numPr><w:ilvl w:val='{depth}'/><w:numId w:val='1'/></w:numPr>")


@pytest.mark.parametrize(
    ("body", "blocks", "notes"),
    [
        (para(run("Seen. "), run("7731", "<w:vanish/>")), [Block("Seen.")], 1),
        (para(run("Seen. "), run("7731", "<w:vanish w:val='0'/>")), [Block("Seen. 7731")], 0),
        (para(run("Seen. "), run("7731", "<w:rStyle w:val='Gone'/>")), [Block("Seen.")], 1),
        (para(run("Seen. "), run("7731", "<w:color w:val='FFFFFF'/>")), [Block("Seen.")], 1),
        (para(run("A"), style="Kapitel") + para(run("B"), style="Out"), [Block("A", 2), Block("B", 1)], 0),
        (para(run("Text"), style="Loop"), [Block("Text")], 0),
        (item("a", 0) + item("b", 1) + item("c", 1) + item("d", 0), NUMBERED, 0),
        (para(run("By it:"), f"<w:r><w:pict>{BOX}</w:pict></w:r>"), ["By it:", "In a box."], 0),
        (para(BOX_TWICE), ["In a box."], 0),
        (para(run("See."), "<w:r><w:footnoteReference w:id='2'/></w:r>"), ["See.", "A note."], 0),
        (para("<w:fldSimple>", run("42 m"), "</w:fldSimple><w:r><w:instrText>PAGE</w:instrText></w:r>"), ["42 m"], 0),
        (para(FORMULA), ["v=s/t"], 0),
        (para(run("Non"), "<w:r><w:noBreakHyphen/></w:r>", run("stop")), ["Non-stop"], 0),
        (para(run("Before.")) + "<w:altChunk r:id='r77'/>", ["Before."], 1),
        (para("<w:ins>", run("ten"), "</w:ins><w:del><w:r><w:delText>nine</w:delText></w:r></w:del>"), ["ten"], 1),
        (f"<w:sdt><w:sdtContent>{para(run('In a control.'))}</w:sdtContent></w:sdt>", ["In a control."], 0),
        ("<w:sdt><w:sdtPr><w:docPartObj><w:docPartGallery w:val='Table of Contents'/></w:docPartObj></w:sdtPr>"
         f"<w:sdtContent>{para(run('1 Contents'))}</w:sdtContent></w:sdt>{para(run('Text'))}", ["Text"], 1),
    ],
    ids=["vanish", "shown", "vanish-by-style", "white", "headings", "style-loop", "numbers", "text-box", "box-twice",
         "footnote", "field", "formula", "hyphens", "foreign-part", "tracked", "control", "contents"],
)  # fmt: skip
def test_word_body_is_read_and_the_rest_counted(body: str, blocks: list[Block | str], notes: int) -> None:
    footnotes = f"<w:footnote w:id='2'>{para(run('A note.'))}</w:footnote>"
    found = read_word(word(body, styles=STYLES, numbering=LISTS, footnotes=footnotes))
    assert list(found.blocks) == [Block(each) if isinstance(each, str) else each for each in blocks]
    assert len(found.notes) == notes


def test_word_file_is_read_in_order() -> None:
    assert read_word(word_file()).blocks == (
        Block("Refund handbook", 1),
        Block("Deadlines", 1),
        Block("Refunds are paid within ten days."),
        Block("- Cards first"),
        Block("Country | Days | Fee\nNorway | ten"),
        Block("Exceptions", 2),
        Block("Gift cards are not refunded."),
    )


def test_struck_and_raised_text_of_a_word_file_is_told_as_that_of_a_web_page() -> None:
    body = para(run("Fee: "), run("40", "<w:strike/>"), run(" 10"), run("6", "<w:vertAlign w:val='superscript'/>"))
    assert read_word(word(body)).blocks == HTML.read(b"<p>Fee: <del>40</del> 10<sup>6</sup></p>").blocks


def test_merged_cells_keep_the_columns_of_values() -> None:
    def cell(text: str, properties: str = "") -> str:
        return f"<w:tc><w:tcPr>{properties}</w:tcPr>{para(run(text)) if text else para()}</w:tc>"

    over, below = "<w:vMerge w:val='restart'/>", "<w:vMerge/>"
    rows = (
        (cell("Quay", over), cell("1"), cell("open")),
        (cell("", below), cell("2"), cell("shut")),
        (cell("all", "<w:gridSpan w:val='2'/>"), cell("mended")),
        (cell("end", "<w:gridSpan w:val='1000000000'/>"),),
    )
    body = f"<w:tbl>{''.join(f'<w:tr>{chr(10).join(row)}</w:tr>' for row in rows)}</w:tbl>"
    assert texts(read_word(word(body))) == ["Quay | 1 | open\nQuay | 2 | shut\nall |  | mended\nend"]


def test_strict_form_is_read_and_headers_and_comments_are_counted() -> None:
    parts = {kind: para(run("Aside")) for kind in ("header", "footer", "comments")}
    strict = f"{STRICT}/wordprocessingml/main"
    found = read_word(word(para(run("Text.")), base=f"{STRICT}/officeDocument/relationships", space=strict, **parts))
    assert texts(found) == ["Text."]
    assert len(found.notes) == 2
    assert SUFFIXES[".docm"] == "docx"


def test_legacy_encrypted_or_too_large_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("docx", "pptx", "mail"):
        with pytest.raises(UnreadableError, match="save"):
            READERS[kind](b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512))
    monkeypatch.setattr("pipelines.inbox.readers.office.MAX_PART_BYTES", 2**20)
    with pytest.raises(UnreadableError, match="unpacks to 3 MiB"):
        read_word(word(para(run("x" * 3 * 2**20))))


def test_reader_without_its_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(UnreadableError, match="pypdfium2"):
        read_pdf(pdf(PAGES))


def slides() -> bytes:
    def slide(*shapes: str, more: str = "") -> str:
        inner = f"<p:cSld><p:spTree>{''.join(shapes)}</p:spTree></p:cSld>"
        return f'<p:sld xmlns:p="{SLIDE}" xmlns:a="{DRAWING}" {more}>{inner}</p:sld>'

    def shape(text: str, kind: str = "body") -> str:
        return (
            f'<p:sp><p:nvSpPr><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr>'
            f"<p:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"
        )

    cells = "".join(f"<a:tc><a:txBody><a:p><a:r><a:t>{c}</a:t></a:r></a:p></a:txBody></a:tc>" for c in ("Quay", "open"))
    names = [("slide", f"slides/slide{i}.xml") for i in range(3)]
    ids = "".join(f'<p:sldId id="{256 + i}" r:id="r{i}"/>' for i in (1, 0, 2))
    return archive(
        {
            "_rels/.rels": links(("officeDocument", "ppt/presentation.xml")),
            "ppt/_rels/presentation.xml.rels": links(*names),
            "ppt/presentation.xml": f'<p:presentation xmlns:p="{SLIDE}" xmlns:r="{RELATIONS}">{ids}</p:presentation>',
            "ppt/slides/slide0.xml": slide(f"<a:tbl><a:tr>{cells}</a:tr></a:tbl>", shape("7", "sldNum")),
            "ppt/slides/slide1.xml": slide(shape("Boats moor east."), shape("Harbour", "title")),
            "ppt/slides/_rels/slide1.xml.rels": links(("notesSlide", "../notes/n.xml")),
            "ppt/notes/n.xml": slide(shape("Say it slowly.")),
            "ppt/slides/slide2.xml": slide(shape("Not shown"), more='show="0"'),
        }
    )


def test_slides_are_sections_in_the_order_of_the_show() -> None:
    found = READERS["pptx"](slides())
    assert found.blocks == (
        Block("Harbour", 2),
        Block("Boats moor east."),
        Block("Say it slowly."),
        Block("Slide 2", 2),
        Block("Quay | open"),
    )
    assert len(found.notes) == 1


# Tables, mail and books


def workbook() -> bytes:
    def sheet(*rows: tuple[str | float, ...]) -> str:
        def cell(value: str | float) -> str:
            kind = "" if isinstance(value, float) else "t='inlineStr'"
            return (
                f"<c {kind}>{f'<v>{value}</v>' if not kind else f'<is><t>{value}</t></is>'}</c>"
                if value != ""
                else "<c/>"
            )

        lines = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
        return f'<worksheet xmlns="{SHEET}"><sheetData>{lines}</sheetData></worksheet>'

    names, hidden = ("Berths", "Fees", "Secret"), 'state="hidden"'
    sheets = "".join(
        f'<sheet name="{name}" sheetId="{i + 1}" r:id="r{i}" {hidden * (name == "Secret")}/>'
        for i, name in enumerate(names)
    )
    return archive(
        {
            "_rels/.rels": links(("officeDocument", "xl/workbook.xml")),
            "xl/_rels/workbook.xml.rels": links(*(("worksheet", f"worksheets/sheet{i}.xml") for i in range(3))),
            "xl/workbook.xml": f'<workbook xmlns="{SHEET}" xmlns:r="{RELATIONS}"><sheets>{sheets}</sheets></workbook>',
            "xl/worksheets/sheet0.xml": sheet(("Berth", "Depth"), ("One", 4.0), ("Two", 4.25)),
            "xl/worksheets/sheet1.xml": sheet(("Fees in euro",), ("Year", "2019", "2020"), ("Day", 7.0, 8.0)),
            "xl/worksheets/sheet2.xml": sheet(("Code", "7731")),
        }
    )


def test_sheets_are_sections_whose_rows_name_their_columns() -> None:
    found = READERS["xlsx"](workbook())
    assert found.blocks == (
        Block("Berths", 2),
        Block("Berth: One; Depth: 4"),
        Block("Berth: Two; Depth: 4.25"),
        Block("Fees", 2),
        Block("Fees in euro"),
        Block("Year: Day; 2019: 7; 2020: 8"),
    )
    assert len(found.notes) == 1


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"Berth,Owner\nOne,\"Roth, Ines\"\nTwo,\n", ["Berth: One; Owner: Roth, Ines", "Berth: Two"]),
        ("Länge;Ort\n4,5;Köln\n".encode("utf-8-sig"), ["Länge: 4,5; Ort: Köln"]),
        ("Berth\tOwner\nOne\tRoth\n".encode("utf-16"), ["Berth: One; Owner: Roth"]),
        (b"1,2\n3,4\n", ["1 | 2", "3 | 4"]),
        (b"Berth,Owner\n", ["Berth | Owner"]),
        (b"Name,Fee\nDay,7\n\nCity,Mayor,Since\nKiel,Sand,2019\n",
         ["Name: Day; Fee: 7", "City: Kiel; Mayor: Sand; Since: 2019"]),
    ],
    ids=["comma", "semicolon", "tab-utf-16", "no-header", "header-alone", "two-tables"],
)  # fmt: skip
def test_rows_of_a_csv_file_name_their_columns(content: bytes, rows: list[str]) -> None:
    assert texts(READERS["csv"](content)) == rows


MESSAGE = (
    b"Subject: =?utf-8?q?Br=C3=BCcke?=\nFrom: Ines <ines@example.org>\nDate: Mon, 30 Nov 2026 09:00:00 +0000\n"
    b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n"
    b"--b\nContent-Type: text/html; charset=iso-8859-1\n\n<p>Paid within <b>zw\xf6lf</b> days.</p>\n"
    b"--b\nContent-Type: application/pdf\nContent-Disposition: attachment; filename=plan.pdf\n\nx\n--b--\n"
)


def test_mail_has_subject_sender_and_date_and_a_mailbox_has_each() -> None:
    found = READERS["mail"](MESSAGE)
    assert (found.title, dict(found.fields)) == ("Brücke", {"effective": "2026-11-30"})
    assert found.blocks[0] == Block("Brücke", 2)
    assert "ines@example.org" in found.blocks[1].text
    assert texts(found)[2:] == ["Paid within zwölf days."]
    assert "plan.pdf" in found.notes[0]

    box = READERS["mail"](b"".join(b"From ines Mon Nov 30\n" + MESSAGE + b"\n" for _ in range(2)))
    assert [block.level for block in box.blocks].count(2) == 2
    assert not box.fields
    with pytest.raises(UnreadableError):
        READERS["mail"](b"Only some words.\n")


def book() -> bytes:
    items = "".join(f'<item id="{i}" href="{i}%20x.xhtml" properties="{"nav" if i == "n" else ""}"/>' for i in "nba")
    spine = "".join(f'<itemref idref="{i}"/>' for i in "nab")
    return archive(
        {
            "META-INF/container.xml": '<c><rootfiles><rootfile full-path="o/p.opf"/></rootfiles></c>',
            "o/p.opf": f'<package xmlns="p" xmlns:d="d"><metadata><d:title>Tides</d:title></metadata>'
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
            "o/n x.xhtml": "<p>Contents</p>",
            "o/a x.xhtml": "<h1>One</h1><p>Low.</p>",
            "o/b x.xhtml": "<p>High.</p>",
        }
    )


def test_book_is_read_in_order_without_its_contents() -> None:
    assert READERS["epub"](book()) == Extract((Block("One", 1), Block("Low."), Block("High.")), title="Tides")


@pytest.mark.parametrize(
    ("kind", "whole"),
    [("pptx", slides()), ("xlsx", workbook()), ("epub", book()), ("mail", MESSAGE)],
    ids=["pptx", "xlsx", "epub", "mail"],
)
@settings(deadline=None, max_examples=25)
@given(cut=st.integers(0, 5000), noise=st.binary(max_size=40))
def test_damaged_file_is_refused_or_read_and_nothing_else(kind: str, whole: bytes, cut: int, noise: bytes) -> None:
    place = cut % len(whole)
    try:
        found = READERS[kind](whole[:place] + noise + whole[place + len(noise) + 1 :])
    except UnreadableError:
        return
    assert all(block.text.strip() for block in found.blocks)


CASES: dict[str, tuple[list[str], list[str], int]] = {
    "pdf_form.pdf": (["Ines Roth", "Berth seven"], [], 0),
    "pdf_freetext.pdf": (["Berth nine is closed."], [], 0),
    "pdf_hyphen.pdf": (["adaptation", "Marrow", "well-known", "price-determining"], [], 0),
    "pdf_invisible.pdf": (["The pier is open."], ["7731", "8842", "9953"], 1),
    "pdf_ligature.pdf": (["The office is filled with floats and staff."], [], 0),
    "pdf_table.pdf": (["One | 4 m | Roth\n", "Two | Sand"], [], 0),
    "dx_altchunk.docx": (["Before."], [], 1),
    "dx_customheading.docx": (["1. first", "- second"], [], 0),
    "dx_docm.docx": (["Macro text."], [], 0),
    "dx_fields.docx": (["Depth: 42 metres, see the chart, formula E=mc, temperature 20°C, software, non-stop"], [], 0),
    "dx_footnote.docx": (["From 3 November to 1 March."], [], 0),
    "dx_strict.docx": (["Strict text."], [], 0),
    "dx_textbox.docx": (["The gate code is kept by Ines Roth."], [], 0),
    "dx_vanish.docx": (["Shown."], ["7731"], 1),
}
"""What a file of the field says, what it must not say, and how many notes tell what is left out."""


@pytest.mark.parametrize("name", CASES)
def test_file_from_the_field_is_read_or_its_rest_counted(name: str, shared_data: Callable[..., Path]) -> None:
    found = READERS[SUFFIXES[Path(name).suffix]](shared_data("..", "cases", name).read_bytes())
    text, (holds, lacks, notes) = "\n".join(texts(found)) + "\n", CASES[name]
    assert [each for each in holds if each not in text] == []
    assert [each for each in lacks if each in text] == []
    assert len(found.notes) == notes


def test_undecodable_file_from_the_field_is_refused(shared_data: Callable[..., Path]) -> None:
    with pytest.raises(UnreadableError, match="does not decode"):
        read_pdf(shared_data("..", "cases", "pdf_garbage.pdf").read_bytes())
