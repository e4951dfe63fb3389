from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.inbox.readers.html import read_html, read_mhtml
from pipelines.inbox.readers.text import Block, Extract, UnreadableError

HTML = b"""<!doctype html><html><head><meta charset="utf-8"><title>Refund  rules</title><style>p{}</style></head>
<body><nav>Home</nav><script>alert(1)</script><h1>Refunds</h1><p>Paid within <b>ten</b>
days<!-- secret -->.<br>Never <span>in cash</span>.</p><div>Loose <p>inner</p> tail</div>
<ul><li>First</li><li><p>Second</p></li></ul><table><caption>Days</caption><tr><th>Country</th><th>Days</th></tr>
<tr><td>Norway</td><td>ten<br>or so</td></tr></table><pre>a  b
 c</pre><p hidden>Not seen</p><h2>End</h2><img src="x" alt="A crane"><footer>Legal</footer></body></html>"""


def texts(page: str) -> list[str]:
    return [block.text for block in read_html(page.encode()).blocks]


def test_page_is_read_as_visible_text() -> None:
    assert read_html(HTML) == Extract(
        (
            Block("Refunds", 1),
            Block("Paid within ten days.\nNever in cash."),
            Block("Loose"),
            Block("inner"),
            Block("tail"),
            Block("- First\n- Second"),
            Block("Days\nCountry | Days\nNorway | ten or so"),
            Block("a  b\n c"),
            Block("End", 2),
            Block("A crane"),
        ),
        title="Refund rules",
        notes=("words left out: 2 of navigation, 2 hidden",),
    )


@pytest.mark.parametrize(
    ("name", "title", "read"),
    [
        ("button_text", "", ["When does the gate close?", "The gate closes at nine."]),
        ("del", "", ["The warden is Mira Sand. Price 30 crowns."]),
        ("entities", "", ["Fish & chips <b> 5 € 🐟 café software zerowidth"]),
        ("headless", "Ferry notice", ["The ferry rests on Sundays."]),
        ("hidden", "Visible", ["Seen by readers.", "A chart of rainfall"]),
        ("rowspan", "", ["Crew | Task\nBlue | Lamps\nBlue | Ropes\n | Paint"]),
        ("sup", "", ["The area is 40 m^2 and H2O flows at 10^6 litres."]),
        ("many_p", "Log", [f"Entry {i}: the valve was checked by crew {i % 7}." for i in range(1500)]),
    ],
)
def test_recorded_pages(shared_data: Callable[..., Path], name: str, title: str, read: list[str]) -> None:
    found = read_html(shared_data("..", "cases", f"html_{name}.html").read_bytes())
    assert found.title == title
    assert [block.text for block in found.blocks][: len(read)] == read


def test_recorded_pages_are_whole(shared_data: Callable[..., Path]) -> None:
    cases = shared_data("..", "cases")
    timetable = read_html((cases / "html_optional_end.html").read_bytes())
    assert [block.text for block in timetable.blocks[1:]] == [
        "The Brantholm ferry leaves twice a day.",
        "Tickets are sold on board.",
        "- Bring a coat\n- Dogs travel free\n- Bicycles cost two crowns",
        "Day | First | Last\nMonday | 07:10 | 19:40\nSunday | 09:05 | 17:30",
        "Captain: Ilse Marrow\nMate: Pell Okonjo",
    ]
    blog = read_html((cases / "html_wpcomment.html").read_bytes())
    assert [block.text for block in blog.blocks][1] == "The pier has nine berths and belongs to Ines Roth."
    saved = read_mhtml((cases / "mhtml.mhtml").read_bytes())
    assert (saved.title, saved.blocks) == ("Lock notes", (Block("The lock opens at dæmring."),))


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("<p hidden>Not seen</p>", "hidden"),
        ("<p style='color: red; DISPLAY : none'>Not seen</p>", "hidden"),
        ("<p style='visibility:hidden'>Not seen</p>", "hidden"),
        ("<p style='opacity:0'>Not seen</p>", "hidden"),
        ("<p style='position:absolute;left:-9999px'>Not seen</p>", "hidden"),
        ("<p style='font-size:0px'>Not seen</p>", "hidden"),
        ("<style>/* x */ .off, #no {display: none}</style><p class='a off'>Not seen</p>", "hidden"),
        ("<style>.js p.off{color:red} p.off{visibility:hidden}</style><p class=off>Not seen</p>", "hidden"),
        ("<i aria-hidden=true>Not seen</i>", "hidden"),
        ("<dialog>Not seen</dialog>", "hidden"),
        ("<strike>Not true</strike>", "struck through"),
        ("<p style='text-decoration: line-through red'>Not true</p>", "struck through"),
        ("<ul role=navigation><li>Home <li>News</ul>", "of navigation"),
        ("<footer>Legal notice</footer>", "of navigation"),
        ("<select><option>One<option>Two</select>", "of form fields"),
        ("<svg><text>Not</text> <text>prose</text></svg>", "embedded"),
        ("<table><tr><td style='display:none'>Not seen</td></tr></table>", "hidden"),
    ],
)
def test_what_is_no_text_of_the_page_is_left_out_and_counted(page: str, kind: str) -> None:
    found = read_html(f"<p>Before.</p>{page}<p>After.".encode())
    assert [block.text for block in found.blocks] == ["Before.", "After."]
    assert found.notes == (f"words left out: 2 {kind}",)


@pytest.mark.parametrize(
    "page",
    [
        "<p style='opacity:0.9; left:-20px'>Seen</p>",
        "<style>@media print {.off {display:none}} .off:hover {display:none}</style><p class=off>Seen</p>",
        "<style>.off {display:none} .off {display:block}</style><p class=off>Seen</p>",
        "<style>.panel {display:none}</style><button>Seen</button><div class=panel>Seen</div>",
        "<h3><button aria-expanded=false aria-controls=p>Seen</button></h3><hr><p id=p hidden>Seen</p>",
        "<details><summary>Seen</summary>Seen</details>",
        "<div role=tabpanel hidden>Seen</div>",
        "<div hidden=until-found>Seen</div>",
        "<div aria-hidden=true><p>Seen behind a dialog that covers it</p></div>",
        "<article><p>Seen</p><footer>Seen</footer></article>",
    ],
)
def test_what_a_reader_can_see_is_read(page: str) -> None:
    found = read_html(page.encode())
    assert found.notes == ()
    assert sum(block.text.count("Seen") for block in found.blocks) == page.count(">Seen")


@pytest.mark.parametrize(
    ("page", "read"),
    [
        ("10<sup>-6</sup> x<sup>n+1</sup> (a+b)<sup>2</sup>", "10^-6 x^(n+1) (a+b)^2"),
        ("CO<sub>2</sub> x<sub>i</sub> 101<sub>2</sub>", "CO2 x_i 101_2"),
        ("the 5<sup>th</sup> tower<sup>®</sup>", "the 5th tower®"),
        ("Floats.<sup>3</sup> So<sup><a href='#n'>4</a></sup> does<sup>[5]</sup> it", "Floats.[3] So[4] does[5] it"),
        ("<ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp>字<rt>ji</rt></ruby>", "漢(kan)字(ji)"),
        ("He said <q>no</q>", "He said “no”"),
        ("<math alttext='a^2'><mi>a</mi></math>", "a^2"),
        ("<ul><li>a<ol start=3><li>b<li value=7>c</ol><li>d<p>e</ul>", "- a\n  3. b\n  7. c\n- d\n  e"),
        ("<dl><dt>a<dt>b<dd>c<dd>d<dt>e</dl>", "a, b: c\na, b: d\ne"),
        ("<dl><dt>a<dd><dl><dt>b<dd>c</dl><dt>d<dd></dd><dt>e<dd><table><td>f</table></dl>", "a:\n  b: c\nd:\ne:\n\nf"),
        ("<table><tr><th>a<th colspan=2>b<tr><td>1<td>2<td>3<tr><td colspan=3>z</table>", "a | b | b\n1 | 2 | 3\nz"),
        ("<table><tr><td rowspan=0>a<td>b<tr><td>c<td>d<tr></table>", "a | b\na | c | d\na"),
        ("<table><tr><td>a<td rowspan=2 colspan=1000>b<tr><td>c</table>", "a | b | b\nc | b | b"),
    ],
)
def test_markup_that_means_something_is_kept(page: str, read: str) -> None:
    assert "\n\n".join(texts(page)) == read


def test_long_table_has_its_header_in_every_block() -> None:
    rows = "".join(f"<tr><td>{i}<td>{'word ' * 10}" for i in range(100))
    blocks = texts(f"<table><tr><th>Number<th>Words{rows}</table>")
    assert len(blocks) > 2
    assert all(block.startswith("Number | Words\n") and len(block) < 2_100 for block in blocks)
    assert sum(block.count("\n") for block in blocks) == 100


def test_main_part_is_the_page_unless_it_is_small() -> None:
    page = read_html(b"<body><div>Old menu</div><main><h2>Heading</h2>Text of the page</main></body>")
    assert page.blocks == (Block("Heading", 2), Block("Text of the page"))
    assert page.notes == ("words left out: 2 outside the main part",)
    assert texts("<main>Loading</main><div>All that is there to read stands here</div>")[1].startswith("All that")


def test_encoding_is_declared_or_a_guess_that_is_told() -> None:
    assert read_html('<meta charset="iso-8859-1"><p>Zwölf “'.encode("cp1252")) == Extract((Block("Zwölf “"),))
    guessed = read_html("<p>Zwölf".encode("cp1252"))
    assert (guessed.blocks, len(guessed.notes)) == ((Block("Zwölf"),), 1)
    assert read_html("<meta charset='shift-jis'><p>日本".encode("shift-jis")).blocks == (Block("日本"),)
    with pytest.raises(UnreadableError, match="'klingon'"):
        read_html(b"<meta charset='klingon'><p>Text.")


@pytest.mark.parametrize("page", ["<div>" * 3_000 + "deep", "<p>" * 9_000 + "deep", "<!--" * 9_000, "<![", "<![ if x"])
def test_any_nesting_is_read(page: str) -> None:
    assert texts(page) in (["deep"], [])


def test_saved_page_without_a_page_is_refused() -> None:
    with pytest.raises(UnreadableError, match="no web page"):
        read_mhtml(b"Subject: x\n\nText")
