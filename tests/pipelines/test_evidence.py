"""The table over seeds, made of results that never happened."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.statistics import SMALL_GROUPS
from pipelines.evidence import VARIANTS, edit_lengths, few_seeds, markdown_table
from pipelines.records import Interval, RunResult
from tests.pipelines.factories import make_result

LEVELS = dict(zip(VARIANTS, (0.0, 0.1, 0.3, 0.2, 0.5), strict=True))


def around(mean: float) -> Interval:
    return Interval(mean=mean, low=mean - 0.05, high=mean + 0.05)


def seed_result(shift: float = 0.0, without: str | None = None) -> RunResult:
    """Return a result of four documents, where the trained teacher's accuracy is moved by `shift`."""
    means = {name: level for name, level in LEVELS.items() if name != without}
    means["trained_teacher"] += shift
    gains = {"trained_minus_untrained": around(0.3 + shift)}
    if without != "fixed_kind":
        gains["trained_minus_fixed_kind"] = around(0.2 + shift)
    spread = (-0.1, 0.1, -0.1, 0.1)
    accuracy = {
        name: {f"d{i}": mean + (s if name == "trained_teacher" else 0.0) for i, s in enumerate(spread)}
        for name, mean in means.items()
    }
    accuracy["base"]["only-base"] = 1.0  # a document on which others failed, so that it is not compared
    return make_result("run").model_copy(
        update={
            "variants": {name: around(mean) for name, mean in means.items()},
            "gains": gains,
            "document_accuracy": accuracy,
            "edit_tokens": {"untrained_teacher": 80.0 + 100 * shift, "trained_teacher": 112.0},
        }
    )


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def interval(cell: str) -> tuple[float, float, float]:
    mean, low, high = cell.replace("[", "").replace("]", "").replace(",", "").split()
    return float(mean), float(low), float(high)


def test_table_has_a_row_a_seed_and_one_over_all_with_intervals() -> None:
    rows = cells(markdown_table({0: seed_result(-0.1), 7: seed_result(0.1)}, np.random.default_rng(0)))
    assert rows[0] == ["seed", *(name.replace("_", " ") for name in VARIANTS), *rows[0][-2:]]
    assert rows[0][-2:] == ["trained − untrained", "trained − best fixed kind"]
    assert [row[0] for row in rows[2:]] == ["0", "7", "all"]
    assert len({len(row) for row in rows}) == 1
    assert rows[2][-2:] == ["+20.0 [+15.0, +25.0]", "+10.0 [+5.0, +15.0]"]
    assert rows[3][-2:] == ["+40.0 [+35.0, +45.0]", "+30.0 [+25.0, +35.0]"]
    mean, low, high = interval(rows[-1][-3])
    assert mean == 50.0
    assert 30.0 <= low <= 40.0
    assert 60.0 <= high <= 70.0
    for cell, expected in zip(rows[-1][-2:], (30.0, 20.0), strict=True):
        mean, low, high = interval(cell)
        assert mean == pytest.approx(expected)
        assert low < expected - 5.0  # far wider than any seed's own interval: the seeds differ
        assert high > expected + 5.0
        assert cell.startswith("+")
    # Eight documents of which none had a hit: the rule of three, 1 - 0.05 ** (1 / 8).
    assert rows[-1][1] == "0.0 [0.0, 31.2]"


def test_table_depends_on_the_generator_alone() -> None:
    results = {0: seed_result(-0.1), 1: seed_result(0.1), 2: seed_result()}
    first, again, other = (markdown_table(results, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == again
    assert first.splitlines()[:-1] == other.splitlines()[:-1]


def test_variant_that_one_seed_lacks_has_no_column() -> None:
    table = markdown_table({0: seed_result(), 1: seed_result(without="fixed_kind")}, np.random.default_rng(0))
    assert "fixed kind" not in table
    assert cells(table)[0][-1] == "trained − untrained"


def test_one_seed_has_a_row_over_all_too() -> None:
    rows = cells(markdown_table({5: seed_result()}, np.random.default_rng(0)))
    assert [row[0] for row in rows[2:]] == ["5", "all"]
    mean, low, high = interval(rows[-1][-1])
    assert (mean, low >= 10.0, high <= 30.0) == (20.0, True, True)


def test_edit_lengths_are_means_over_seeds_of_the_variants_that_have_some() -> None:
    told = edit_lengths({0: seed_result(-0.1), 1: seed_result(0.1)})
    assert told == "Mean tokens of a self-edit: untrained teacher 80, trained teacher 112."
    assert edit_lengths({0: make_result("run")}) == ""


def test_few_seeds_come_with_a_caution_and_enough_without() -> None:
    assert "tells nothing of how another seed" in few_seeds(1)
    assert few_seeds(3).startswith("Intervals over 3 seeds are too narrow")
    assert few_seeds(SMALL_GROUPS - 1) != ""
    assert few_seeds(SMALL_GROUPS) == ""
