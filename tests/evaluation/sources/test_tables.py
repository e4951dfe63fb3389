"""Tables with the structure of those in real annual reports, all of whose values were listed by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.sources.sections import Section, sections_of, statements_of
from evaluation.tasks import Document
from pipelines.inbox.readers import READERS
from pipelines.inbox.readers.text import with_marks
from tests.pipelines.inbox.files import placed_pdf


def statements(content: bytes, form: str, title: str, limit: int = 4_000) -> tuple[set[str], set[str], list[Section]]:
    """Return the certain lines, the uncertain ones, and the sections; each line's span must hold its value."""
    text = "\n\n".join(block.text for block in with_marks(READERS[form](content).blocks))
    sections = sections_of(Document(id="d", title=title, text=text), limit)
    lines: dict[bool, set[str]] = {True: set(), False: set()}
    for section in sections:
        for each in statements_of(section):
            value = each.text.rpartition(": ")[2].split(" ")[0].lstrip("-")
            assert value in text[each.start : each.end]
            assert "\n" not in text[each.start : each.end]
            lines[each.uncertain].add(each.text)
    return lines[False], lines[True], sections


def listed(company: str, unit: str, periods: list[str], values: str) -> set[str]:
    """Return the lines of a table: `item | value | value`; `–` is none, a unit of its own stands behind, # is none."""
    lines = set()
    for row in values.strip().splitlines():
        item, *cells = (cell.strip() for cell in row.split("|"))
        for period, cell in zip(periods, cells, strict=True):
            value, _, own = cell.partition(" ")
            if value != "–":
                lines.add(f"{company}, {item}, {period}: {value} {(own or unit).strip('#')}".strip())
    return lines


RIGHT_EDGES = (345, 425, 520)
INCOME = [
    ("", "Note", "2024", "2023"),
    ("Revenue", "4", "1,639,412", "1,527,880"),
    ("Cost of sales", "", "(1,020,150)", "(960,300)"),
    ("Gross profit", "", "619,262", "567,580"),
    ("Other operating income", "5", "12,004", "9,870"),
    ("Selling expenses", "", "(311,090)", "(301,877)"),
    ("of which marketing", "", "(41,200)", "(38,900)"),
    ("Administrative expenses (note 6)", "6", "(88,760)", "(85,120)"),
    ("Impairment losses", "7", "25", ""),
    ("Research", "", "–", "4,100"),
]
CONTINUED = [
    ("", "Note", "2024", "2023"),
    ("Operating profit", "", "231,441", "194,553"),
    ("Finance costs", "8", "(14,300)", "(12,950)"),
    ("Profit before tax", "", "217,141", "181,603"),
    ("Income taxes", "9", "(61,200)", "(54,010)"),
    ("Profit for the year", "", "155,941", "127,593"),
    ("Profit attributable to the owners",),
    ("of the parent", "", "141,000", "115,300"),
    ("Earnings per share (in euros)", "12", "2.31", "1.89"),
    ("Average number of employees", "", "8,914", "8,702"),
]
EXPECTED = """
Revenue | 1,639,412 | 1,527,880
Cost of sales | -1,020,150 | -960,300
Gross profit | 619,262 | 567,580
Other operating income | 12,004 | 9,870
Selling expenses | -311,090 | -301,877
Selling expenses, of which marketing | -41,200 | -38,900
Administrative expenses | -88,760 | -85,120
Research | – | 4,100
Operating profit | 231,441 | 194,553
Finance costs | -14,300 | -12,950
Profit before tax | 217,141 | 181,603
Income taxes | -61,200 | -54,010
Profit for the year | 155,941 | 127,593
Profit attributable to the owners of the parent | 141,000 | 115,300
Earnings per share | 2.31 euros | 1.89 euros
Average number of employees | 8,914 # | 8,702 #
"""
UNSURE = 1  # an impairment, as its cell of a year is blank and its note could be a value


def income_statement() -> bytes:
    """Return a PDF whose table goes on over the page, right-aligned, with notes, subtotals and blank cells."""
    pages = []
    for table, more in ((INCOME, ""), (CONTINUED, " (continued)")):
        page = [(50.0, 800.0, f"Consolidated income statement{more}"), (50.0, 786.0, "in thousands of euros")]
        for number, (label, *cells) in enumerate(table):
            height = 760.0 - 14 * number
            page += [(50.0, height, label)] if label else []
            page += [
                (right - 4.7 * len(cell), height, cell) for right, cell in zip(RIGHT_EDGES, cells, strict=False) if cell
            ]
        pages.append(page)
    pages[1].append(
        (50.0, 560.0, "The figures of the year before are restated, as note 2 explains for each of the items.")
    )
    return placed_pdf(pages)


def test_income_statement_over_two_pages_of_a_pdf_becomes_lines() -> None:
    expected = listed("Nordhaven Group", "thousand euros", ["2024", "2023"], EXPECTED)
    certain, uncertain, sections = statements(income_statement(), "pdf", "Nordhaven Group Annual Report 2024")
    print(f"{len(certain & expected)} of {len(expected) + UNSURE} values as right lines, {len(uncertain)} marked")
    assert certain <= expected, "a line without the mark is wrong"
    assert len(certain) >= 0.95 * (len(expected) + UNSURE)
    assert uncertain
    assert [section.page for section in sections] == [1]


def test_a_table_longer_than_a_section_takes_its_header_and_unit_along() -> None:
    expected = listed("Nordhaven Group", "thousand euros", ["2024", "2023"], EXPECTED)
    certain, _, sections = statements(income_statement(), "pdf", "Nordhaven Group Annual Report 2024", 400)
    assert len(sections) > 2
    assert all(len(section.text) <= 400 for section in sections)
    assert any("Note | 2024 | 2023" in section.context for section in sections)
    assert certain <= expected
    assert len(certain) >= 0.9 * len(expected)


HALF_YEAR = """<h1>Halden Energy plc half-year report 2024</h1><h2>Segments</h2>
<p>All amounts in £ million unless stated otherwise.</p>
<table><tr><th></th><th colspan=2>Three months ended 30 June</th><th colspan=2>Six months ended 30 June</th></tr>
<tr><th></th><th>2024</th><th>2023<sup>*</sup></th><th>2024</th><th>2023</th></tr>
<tr><td>Revenue<sup><a href="#f">1</a></sup></td><td>412.3</td><td>388.1</td><td>801.0</td><td>777.4</td></tr>
<tr><td>Loss before tax</td><td>(12.4)</td><td>3.1</td><td>(9.8)</td><td>–</td></tr>
<tr><td colspan=5>Free cash flow</td></tr>
<tr><td>– before dividends</td><td>55.0</td><td></td><td>101.2</td><td>98.7</td></tr>
<tr><td>Gearing</td><td>41%</td><td>44 %</td><td>41%</td><td>44%</td></tr>
<tr><td>Tax rate</td><td>21.0</td><td>20.0</td><td>21.4</td><td>20.2</td></tr>
<tr><td></td><td>1.0</td><td>2.0</td><td>3.0</td><td>4.0</td></tr>
</table><p>1 Without discontinued operations.</p>"""


def test_two_header_rows_with_merged_cells_give_the_period() -> None:
    quarter, half = "Three months ended 30 June", "Six months ended 30 June"
    periods = [f"{quarter} 2024", f"{quarter} 2023", f"{half} 2024", f"{half} 2023"]
    rows = """
Revenue | 412.3 | 388.1 | 801.0 | 777.4
Loss before tax | -12.4 | 3.1 | -9.8 | –
Free cash flow, before dividends | 55.0 | – | 101.2 | 98.7
Gearing | 41 % | 44 % | 41 % | 44 %
"""
    certain, uncertain, _ = statements(HALF_YEAR.encode(), "html", "Halden Energy plc half-year report 2024")
    assert certain == listed("Halden Energy plc", "million pounds", periods, rows)
    assert len(uncertain) == 8  # a rate without a unit, and a row without a label


BALANCE = """# Orrin SE Annual Report 2023/24

## Balance sheet

| € million | 30 September 2024 | 30 September 2023 (restated) | Change in % |
|---|---|---|---|
| **Non-current assets** | | | |
| Intangible assets (Note 11) | 1,120.4 | 1,118.9 | 0.1 |
| Other assets | 12.1 | 11.01 | 10.0 |
| **Current assets** | | | |
| Inventories* | 88.0 | 91,22 | −3.5 |
| Other assets | 5.5 | 6.1 | −9.8 |
| Total assets | 1,226.0 | 1,227.2 | −0.1 |

## Emissions and staff

| | Unit | 2024 | 2023 |
|---|---|---|---|
| Scope 1 | t CO2e | 12,400 | 13,1001 |
| Energy | MWh | 98,200 | 101,300 |

## Key figures of the segments 2024 (EUR k)

| | Europe | Asia |
|---|---|---|
| Sales | 500 | 300 |
| Shares outstanding | 50 | 30 |

| | Berlin | Rome |
|---|---|---|
| Stores | 5 | 6 |
"""


def test_units_of_corner_column_and_caption_are_kept_and_the_rest_is_marked() -> None:
    assets = """
Intangible assets | 1,120.4 | 1,118.9 | 0.1 %
Non-current assets, Other assets | 12.1 | 11.01 | 10.0 %
Inventories | 88.0 | – | -3.5 %
Current assets, Other assets | 5.5 | 6.1 | -9.8 %
Total assets | 1,226.0 | 1,227.2 | -0.1 %
"""
    dates = ["30 September 2024", "30 September 2023 (restated)", "Change in %"]
    certain, uncertain, _ = statements(BALANCE.encode(), "markdown", "Orrin SE Annual Report 2023/24")
    assert certain == {
        *listed("Orrin SE", "million euros", dates, assets),
        *listed("Orrin SE", "", ["2024", "2023"], "Scope 1 | 12,400 t CO2e | –\nEnergy | 98,200 MWh | 101,300 MWh"),
        *listed("Orrin SE", "thousand euros", ["Europe, 2024", "Asia, 2024"], "Sales | 500 | 300"),
    }
    assert len(uncertain) == 6  # two misprints, shares in thousands of euros, stores without a year


FORM_10K = """<h1>Corvid Inc. Annual Report 2024</h1><p>(in millions, except per share amounts)</p>
<table><tr><td></td><td colspan=3>2024</td><td></td><td colspan=3>2023</td></tr>
<tr><td>Net sales</td><td>$</td><td>1,639</td><td></td><td></td><td>$</td><td>1,528</td><td></td></tr>
<tr><td>Net loss</td><td></td><td>(20</td><td>)</td><td></td><td></td><td>(14</td><td>)</td></tr>
<tr><td>Loss per share</td><td>$</td><td>(0.12</td><td>)</td><td></td><td>$</td><td>(0.08</td><td>)</td></tr></table>"""


def test_signs_in_cells_of_their_own_belong_to_the_number() -> None:
    rows = "Net sales | 1,639 | 1,528\nNet loss | -20 | -14\nLoss per share | -0.12 dollars | -0.08 dollars"
    certain, uncertain, _ = statements(FORM_10K.encode(), "html", "Corvid Inc. Annual Report 2024")
    assert (certain, uncertain) == (listed("Corvid Inc.", "million dollars", ["2024", "2023"], rows), set())


CELLS = st.sampled_from(
    ["", "2024", "2023", "Q1", "5", "(1,020)", "€ m", "Sales", "of which old", "Note", "Unit", "$", ")", "%", "–"]
)


@settings(deadline=None)
@given(st.lists(st.lists(CELLS, min_size=1, max_size=6), min_size=1, max_size=8), st.sampled_from(["\n", "\n\n"]))
def test_any_table_is_read_and_each_line_stands_for_a_row(rows: list[list[str]], between: str) -> None:
    text = between.join(" | ".join(row) for row in rows)
    for section in sections_of(Document(id="d", title="Orrin SE", text=f"Figures\n\n{text}"), 4_000):
        for each in statements_of(section):
            assert "|" in text[each.start - 9 : each.end - 9]
            assert each.text.startswith("Orrin SE")


@pytest.mark.parametrize(
    "table",
    [
        "Method | SQuAD | QuALITY\nOurs | 71.3 | 55.2\nTheirs | 70.1 | 54.0",  # no period, no unit
        "in EUR m | 2024 | 2023\nSales | 10\nCosts | 5 | 4 | 3",  # fewer and more cells than columns
        "Item | Value\nSales | 10\nCosts | 5",
        "Q1 | Q2 | Total | 2024 | 2023\nSales in EUR m | 1 | 2 | 3 | 4 | 5 | 6\nCosts | 1 | 2 | 3 | 4 | 5 | 6",
        "EUR m | H1 | H2\n2024 | 2023 | 2022\nSales | 10 | 11 | 12\nCosts | 5 | 4 | 3",  # two cells over three columns
    ],
)
def test_what_has_to_be_guessed_is_marked(table: str) -> None:
    section = sections_of(Document(id="d", title="Orrin SE", text=f"Figures\n\n{table}"), 4_000)[0]
    found = statements_of(section)
    assert found
    assert all(each.uncertain for each in found)


@pytest.mark.parametrize(
    ("table", "certain"),
    [
        (
            "Five years\n\n| | 2024 | 2023 |\n|---|---|---|\n| Revenue (€ million) | 1,639.4 | 1,527.9 |\n"
            "| ROCE in % | 11.0 | 12.0 |\n| Dividend per share (€) | 0.85 | 0.80 |\n| Net debt | 5.0 | 4.0 |",
            {
                *listed("Orrin SE", "million euros", ["2024", "2023"], "Revenue | 1,639.4 | 1,527.9"),
                *listed("Orrin SE", "%", ["2024", "2023"], "ROCE in % | 11.0 | 12.0"),
                *listed("Orrin SE", "euros", ["2024", "2023"], "Dividend per share | 0.85 | 0.80"),
            },
        ),
        (
            "Quarters in EUR m\n\n| | 2024 | | 2023 | |\n|---|---|---|---|---|\n| | Q1 | Q2 | Q1 | Q2 |\n"
            "| Sales | 1.0 | 2.0 | 5.0 | 6.0 |",
            listed(
                "Orrin SE",
                "million euros",
                ["2024 Q1", "2024 Q2", "2023 Q1", "2023 Q2"],
                "Sales | 1.0 | 2.0 | 5.0 | 6.0",
            ),
        ),
        (
            "Equity for the year ended 31 December 2024 (£ million)\n\n| | Capital | Reserves |\n|---|---|---|\n"
            "| Balance at 1 January 2023 | 100 | 50 |\n| Dividends | – | (20) |",
            {
                *listed("Orrin SE", "million pounds", ["Capital", "Reserves"], "Balance at 1 January 2023 | 100 | 50"),
                *listed("Orrin SE", "million pounds", ["Capital, 2024", "Reserves, 2024"], "Dividends | – | -20"),
            },
        ),
        ("Revenue rose by 5 million euros in 2024.\n\n| | 2024 | 2023 |\n|---|---|---|\n| Rent | 5 | 6 |", set()),
        ("EUR m\n\n| | 2024 | 2023 | 2024 | 2023 |\n|---|---|---|---|---|\n| Rent | 5 | 6 | 7 | 8 |", set()),
        ("EUR m\n\n| | 2024 | 2023 |\n|---|---|---|\n| Loans in euros | 5 | 6 |", set()),
        ("In $ thousands\n\n| | 2024 | 2023 |\n|---|---|---|\n| Weighted average shares | 5,000 | 6,000 |", set()),
    ],
    ids=["five years", "quarters", "equity", "no caption", "columns of one name", "loans", "shares"],
)
def test_tables_of_other_forms(table: str, certain: set[str]) -> None:
    section = sections_of(Document(id="d", title="Orrin SE", text=table), 4_000)[0]
    found = statements_of(section)
    assert found
    assert {each.text for each in found if not each.uncertain} == certain
