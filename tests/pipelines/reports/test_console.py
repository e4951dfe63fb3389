from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from evaluation.statistics import Interval, PairedTest
from pipelines.process import preceptor
from pipelines.records import RunResult, SpecSearch, UnknownComparison, VariantComparison
from pipelines.reports.console import closing, print_run, reading, round_line, run_notes, run_table
from pipelines.reports.format import counted, duration, p_value, percent, points, points_interval
from tests.pipelines.factories import make_candidate, make_learning, make_round, make_unparsable, make_variant

SHOWN = Interval(mean=0.183, low=0.102, high=0.264)
UNCLEAR = Interval(mean=0.074, low=-0.019, high=0.164)
WORSE = Interval(mean=-0.05, low=-0.09, high=-0.01)
SCORES = {f"t{i}": i / 10 for i in range(10)}
VARIANTS = (
    make_variant("base", label="base student", accuracy=SCORES, failures={}, edit_tokens=None),
    make_variant("fixed_kind", label="best fixed kind (micro-self-qa)", accuracy=SCORES, edit_tokens=1112.4),
    make_variant("raw_passage", label="raw [bold]passage[/]", accuracy={}, failures={"update_failed": 3, "canary": 2}),
    make_variant("untrained_teacher", accuracy=SCORES, failures={}),
    make_variant("trained_teacher", accuracy=SCORES, failures={}, edit_tokens=90.0),
    make_variant("oracle", accuracy=SCORES, failures={}),
)
COMPARISON = VariantComparison(
    documents=10,
    variants={
        "base": Interval(mean=0.051, low=0.023, high=0.104),
        "fixed_kind": Interval(mean=1.0, low=1.0, high=1.0),
        "trained_teacher": Interval(mean=0.324, low=0.255, high=0.403),
    },
    gains={
        "trained_minus_untrained": SHOWN,
        "trained_minus_fixed_kind": UNCLEAR,
        "trained_minus_base": SHOWN,
        "oracle_minus_trained": SHOWN,
        "raw_passage_minus_base": WORSE,
    },
    confidence=0.95,
    minimum_detectable={"trained_minus_untrained": 0.118, "trained_minus_base": 0.09},
    tests={"trained_minus_base": PairedTest(sign_flip=0.02, adjusted=0.08)},
)


def result(**changes: object) -> RunResult:
    fields: dict[str, object] = {
        **dict(COMPARISON),
        "rounds": ({"mean_reward": 0.1}, {"mean_reward": None}, {"mean_reward": 0.25}),
        "seconds": {},
        "documents": 48,
        "mlflow_run_id": "f00d" * 8,
        "config_digest": "c",
        "code_digest": "d",
        "seed": 4,
        **changes,
    }
    return RunResult.model_validate(fields)


def printed(what: RenderableType, width: int = 80) -> str:
    """Return what a log without a terminal gets."""
    out = io.StringIO()
    Console(width=width, file=out).print(what)
    return out.getvalue()


def test_figures_read_the_same_everywhere() -> None:
    assert (points(0.183), points(-0.0001), points(None)) == ("+18.3", "+0.0", "-")
    assert points_interval(WORSE) == "-5.0 [-9.0, -1.0]"
    assert (percent(0.4567), percent(0.4567, 0), percent(None)) == ("45.7", "46", "-")
    assert (p_value(0.0312), p_value(0.0004)) == ("0.031", "< 0.001")
    assert (counted(1, "round"), counted(1200, "round")) == ("1 round", "1,200 rounds")
    assert (duration(4.25), duration(599), duration(3600)) == ("4.2 s", "599 s", "60 min")


@pytest.mark.parametrize(
    ("gain", "adjusted", "expected"),
    [
        (SHOWN, None, "significant"),
        (SHOWN, 0.05, "significant"),
        (SHOWN, 0.06, "within noise"),
        (WORSE, 0.001, "significant"),
        (UNCLEAR, None, "within noise"),
        (Interval(mean=0.1, low=0.0, high=0.2), None, "within noise"),
        (Interval(mean=-0.1, low=-0.2, high=0.0), None, "within noise"),
    ],
)
def test_a_difference_is_significant_by_its_interval_and_its_corrected_test(
    gain: Interval, adjusted: float | None, expected: str
) -> None:
    test = None if adjusted is None else PairedTest(sign_flip=0.0, adjusted=adjusted)
    assert reading(gain, test, 0.95) == expected


def test_round_line_fits_a_line_and_says_what_is_missing() -> None:
    candidates = (make_candidate(index=0), make_candidate(index=1, reward=0.25), *[make_unparsable()] * 2)
    line = round_line(make_round(12, candidates, base_reward=0.0825))
    assert line == "round 12: reward 0.375, base 0.083, 2/4 scored, 2 parse_failed, KL 0.125, 3.5 s"
    line = round_line(make_round(1, (make_unparsable(),) * 3, learning=make_learning(examples=0, kl=None)))
    assert "no reward" in line
    assert "0/3 scored, 3 parse_failed" in line
    assert "KL" not in line


UNKNOWN = UnknownComparison(phrasings=4, questions=96, unknown=84, documents=9, variants=COMPARISON.variants, gains={})


@pytest.mark.parametrize("width", [76, 80])
@pytest.mark.parametrize("unknown", [None, UNKNOWN])
def test_table_cuts_nothing(width: int, unknown: UnknownComparison | None) -> None:
    text = printed(run_table(COMPARISON.model_copy(update={"unknown": unknown}), VARIANTS), width)
    assert (text.count("32.4 [25.5, 40.3]") == 2) == ("84 of 96" in text) == (unknown is not None)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for figures in ("5.1 [2.3, 10.4]", "100.0 [100.0, 100.0]", "32.4 [25.5, 40.3]", "+7.4 [-1.9, +16.4]", "1,112"):
        assert figures in text
    assert "[bold]" in text


def test_table_reads_the_last_teacher_against_every_variant() -> None:
    rows = {line.split()[0]: line.split() for line in printed(run_table(COMPARISON, VARIANTS), 120).splitlines()[3:]}
    assert rows["untrained"][-6:] == ["+18.3", "[+10.2,", "+26.4]", "significant", "3", "0"]
    assert rows["base"][-4:] == ["within", "noise", "-", "0"]  # the corrected test does not exclude 0
    assert rows["oracle"][-6:-2] == ["-18.3", "[-26.4,", "-10.2]", "significant"]
    assert rows["trained"][-4:] == ["-", "-", "90", "0"]
    assert rows["raw"][-1] == "5"
    assert "no scores" in " ".join(rows["raw"])


def test_notes_name_every_caveat_once() -> None:
    notes = run_notes(result(documents=7), COMPARISON, VARIANTS)
    figures = ("1 of 3 rounds", "9.0 to 11.8 points", "raw passage minus base", "Only 7 test")
    failures = ("2 canary, 3 update_failed", "no document has a score: raw", "3 documents on which")
    for fact in (*figures, *failures):
        assert sum(fact in note for note in notes) == 1, fact


def test_notes_on_variants_near_zero_and_none_on_a_clear_result() -> None:
    low = Interval(mean=0.012, low=0.0, high=0.03)
    near = run_notes(result(variants={"base": low, "trained_teacher": low}, gains={}), COMPARISON, ())
    assert any("under 2 %" in note for note in near)
    apart = run_notes(result(variants={"base": low, "trained_teacher": SHOWN}, gains={}), COMPARISON, ())
    assert not any("under 2 %" in note for note in apart)
    clear = result(gains={"a_minus_b": SHOWN}, rounds=({"mean_reward": 0.1},))
    variant = make_variant("a", accuracy={f"t{i}": 0.5 for i in range(48)}, failures={})
    assert run_notes(clear, COMPARISON, (variant,)) == ()


@pytest.mark.parametrize("notes", [(), ("Short.",), ("One word " * 30,) * 9])
def test_closing_takes_at_most_twelve_lines_and_wraps_only_sentences(notes: tuple[str, ...]) -> None:
    specs = SpecSearch(tasks=12, fixed='{"epochs": 4}', scores={'{"epochs": 4}': 0.3})
    whole = result(notes=notes, specs=specs)
    work, config = Path("runs/my " + "long/" * 20), Path("configs/it's.yaml")
    lines = closing(whole, work, config, ("loop.rounds=3", "name='a b'"), work / "plots").splitlines()
    assert len(lines) <= 12
    assert all(len(line) <= 80 for line in lines if "long" not in line)
    assert f"  {preceptor('ui', '--work-dir', 'runs/my ' + 'long/' * 19 + 'long')}" in lines
    command = next(line for line in lines if line.startswith(f"  {preceptor('train-teacher', config)}"))
    assert command.endswith(" --set loop.rounds=3 --set 'name='\"'\"'a b'\"'\"'' --set seed=5")
    assert any("MLflow run " + "f00d" * 8 in line for line in lines)
    assert ("more in result.json" in " ".join(lines)) == (len(notes) > 1)


def test_summary_tells_reward_specifications_and_spending() -> None:
    spent = {"judge": {"calls": 1200, "failures": 2, "tokens": 34000}}
    words = " ".join(closing(result(spent=spent), Path("w"), Path("c.yaml")).split())
    assert "mean training reward 0.100 -> 0.250" in words
    assert "Endpoint judge: 1,200 calls (2 without a reply), 34,000 tokens." in words


def test_a_run_prints_plain_text_without_a_terminal() -> None:
    out = io.StringIO()
    words = closing(result(notes=("See [bold] there.",)), Path("runs/" + "x" * 90), Path("c.yaml"))
    print_run(Console(width=80, file=out), COMPARISON, VARIANTS, words)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "…" not in text
    assert "See [bold] there." in text
    assert "--work-dir runs/" + "x" * 90 in text
