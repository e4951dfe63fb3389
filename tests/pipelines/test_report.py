from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console, RenderableType

from pipelines.plots import plot_accuracy, plot_rewards
from pipelines.records import CandidateRecord, EditRecord, Interval, LearningRecord, RoundRecord
from pipelines.report import (
    closing,
    comparison_table,
    families_table,
    gains_table,
    next_notes,
    p_value,
    print_report,
    round_line,
    verdict,
)
from pipelines.results import (
    ComparisonRecord,
    FamilyRecord,
    OracleRecord,
    PairedTestRecord,
    RunResult,
    SpecSearchRecord,
    VariantRecord,
)
from teacher.rewards import RewardFailure
from teacher.self_edit import Implication, SelfEdit

SHOWN = Interval(mean=0.183, low=0.102, high=0.264)
UNCLEAR = Interval(mean=0.074, low=-0.019, high=0.164)
WORSE = Interval(mean=-0.05, low=-0.09, high=-0.01)


def _candidate(reward: float | None, reason: RewardFailure | None = None) -> CandidateRecord:
    edit = SelfEdit(implications=(Implication(text="a line"),))
    record = EditRecord(document_id="d", index=0, text="a line", token_ids=(1,), finish_reason="stop", edit=edit)
    return CandidateRecord(edit=record, reward=reward, reason=reason)


def _round(
    number: int = 12, rewards: tuple[float, ...] = (0.1, 0.3), failed: int = 2, kl: float | None = 0.0061
) -> RoundRecord:
    failures = (_candidate(None, RewardFailure.PARSE_FAILED),) * failed
    return RoundRecord(
        round=number,
        document_ids=("d", "e"),
        candidates=(*map(_candidate, rewards), *failures),
        mean_reward=sum(rewards) / len(rewards) if rewards else None,
        base_reward=0.0825,
        learning=LearningRecord(policy="p", policy_digest="x", examples=len(rewards), tokens=9, kl=kl, seconds=1.0),
        seconds={"sample": 10.0, "update": 30.0, "learn": 2.4},
    )


def _variant(name: str, label: str, accuracy: dict[str, float] | None = None, **more: object) -> VariantRecord:
    scores = {f"t{i}": i / 10 for i in range(10)} if accuracy is None else accuracy
    return VariantRecord.model_validate({"name": name, "label": label, "candidates": (), "accuracy": scores, **more})


VARIANTS = (
    _variant("base", "student without an update", phrasings={"held-out": 0.05}),
    _variant("fixed_kind", "best fixed kind (micro-self-qa)", edit_tokens=112.4, training_tokens=1_234_567.0),
    _variant("raw_passage", "raw [bold]passage[/bold] [/]", {}, failures={"update_failed": 3, "non_finite": 2}),
    _variant("trained_teacher", "trained teacher", phrasings={"held-out": 0.33, "unseen": 0.297}, edit_tokens=90.0),
)

COMPARISON = ComparisonRecord(
    documents=10,
    variants={
        "base": Interval(mean=0.051, low=0.023, high=0.104),
        "fixed_kind": Interval(mean=1.0, low=1.0, high=1.0),
        "trained_teacher": Interval(mean=0.324, low=0.255, high=0.403),
    },
    gains={
        "trained_teacher_minus_untrained_teacher": SHOWN,
        "trained_teacher_minus_fixed_kind": UNCLEAR,
        "raw_passage_minus_base": WORSE,
    },
    confidence=0.95,
    minimum_detectable={"trained_teacher_minus_untrained_teacher": 0.118},
)


def _result(**changes: object) -> RunResult:
    fields: dict[str, object] = {
        "variants": COMPARISON.variants,
        "gains": COMPARISON.gains,
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


def _printed(what: RenderableType, width: int = 80) -> str:
    """Return what a log without a terminal gets."""
    out = io.StringIO()
    Console(width=width, file=out).print(what)
    return out.getvalue()


def _squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (SHOWN, "above 0"),
        (UNCLEAR, "within noise"),
        (WORSE, "below 0"),
        (Interval(mean=0.1, low=0.0, high=0.2), "within noise"),
        (Interval(mean=-0.1, low=-0.2, high=0.0), "within noise"),
    ],
)
def test_verdict_needs_the_whole_interval_on_one_side(gain: Interval, expected: str) -> None:
    assert verdict(gain) == expected


def test_round_line_fits_a_line_and_tells_what_happened() -> None:
    line = round_line(_round())
    assert line == "round 12: reward 0.200, base 0.083, 2/4 scored, 2 parse_failed, KL 0.006, 42 s"
    assert len(line) <= 80


def test_round_line_of_a_round_without_rewards_says_so() -> None:
    line = round_line(_round(rewards=(), failed=3, kl=None))
    assert "no reward" in line
    assert "0/3 scored, 3 parse_failed" in line
    assert "nothing to learn from" in line
    assert "KL" not in line


def test_comparison_table_cuts_nothing_at_80_columns() -> None:
    text = _printed(comparison_table(COMPARISON, VARIANTS))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for figures in ("5.1 [2.3, 10.4]", "100.0 [100.0, 100.0]", "32.4 [25.5, 40.3]", "1,234,567", "112"):
        assert figures in text
    for words in ("held-out 33.0", "unseen 29.7", "no scores", "Failed", "10 test documents", "95 % bootstrap"):
        assert words in _squeezed(text)
    assert "[bold]" in text
    failed = next(line for line in text.splitlines() if "no scores" in line)
    assert failed.split()[-1] == "5"


def test_gains_table_cuts_nothing_at_80_columns() -> None:
    text = _printed(gains_table(COMPARISON))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    first, second, third = (next(line for line in text.splitlines() if mark in line) for mark in ("+18", "+7", "-5"))
    assert first.split()[-6:] == ["[+10.2,", "+26.4]", "above", "0", "11.8", "-"]
    assert second.split()[-6:] == ["[-1.9,", "+16.4]", "within", "noise", "-", "-"]
    assert third.split()[-6:] == ["[-9.0,", "-1.0]", "below", "0", "-", "-"]


def test_gains_table_shows_corrected_p_values() -> None:
    tests = {next(iter(COMPARISON.gains)): PairedTestRecord(sign_flip=0.0001, adjusted=0.0002)}
    text = _printed(gains_table(COMPARISON.model_copy(update={"tests": tests})))
    assert next(line for line in text.splitlines() if "+18" in line).split()[-2:] == ["<", "0.001"]
    assert (p_value(0.0312), p_value(0.0004)) == ("0.031", "< 0.001")


def test_tables_at_60_columns_still_hold_every_figure() -> None:
    text = _printed(comparison_table(COMPARISON, VARIANTS[:1]), 60) + _printed(gains_table(COMPARISON), 64)
    assert "…" not in text
    assert "5.1 [2.3, 10.4]" in text
    assert "[+10.2, +26.4]" in text


def test_closing_calls_a_gain_shown_only_when_its_interval_excludes_0() -> None:
    text = _squeezed(closing(_result(), Path("runs/a"), Path("c.yaml")))
    assert "minus untrained teacher: +18.3 points [+10.2, +26.4]. Shown: the whole interval is above 0." in text
    assert "minus fixed kind: +7.4 points [-1.9, +16.4]. Not shown: the interval contains 0." in text
    assert "raw passage minus base: -5.0 points [-9.0, -1.0]. Shown to be worse" in text
    assert text.count("Shown: ") == 1


def test_closing_tells_the_padding_in_one_line_where_students_were_trained() -> None:
    line = "  Padding in training the students: 12.5 % of token places."
    assert line in closing(_result(padding_share=0.125), Path("r"), Path("c")).splitlines()
    assert "Padding" not in closing(_result(), Path("r"), Path("c"))


def test_closing_never_shows_minus_zero() -> None:
    gains = {"a_minus_b": Interval(mean=-0.0001, low=-0.02, high=0.0002)}
    assert "+0.0 points [-2.0, +0.0]" in closing(_result(gains=gains), Path("r"), Path("c"))


def test_closing_gives_commands_that_a_shell_takes_and_wraps_only_sentences() -> None:
    result = _result(notes=("One word " * 30,))
    work_dir, config = Path("runs/my " + "long/" * 20), Path("configs/it's.yaml")
    lines = closing(result, work_dir, config, {"Prefect flow run": "0b5c"}).splitlines()
    assert f"    preceptor ui --work-dir 'runs/my {'long/' * 19}long'" in lines
    assert """    preceptor train-teacher 'configs/it'"'"'s.yaml' --set seed=5""" in lines
    assert "  MLflow run: " + "f00d" * 8 in lines
    assert "  Prefect flow run: 0b5c" in lines
    assert all(len(line) <= 80 for line in lines if "long" not in line)


def test_next_notes_say_when_all_variants_are_near_zero() -> None:
    low = Interval(mean=0.012, low=0.0, high=0.03)
    near = next_notes(_result(variants={"base": low, "trained_teacher": low}, gains={}))
    assert any("under 2 %" in note and "too small for these documents" in note for note in near)
    apart = next_notes(_result(variants={"base": low, "trained_teacher": SHOWN}, gains={}))
    assert not any("too small" in note for note in apart)


def test_next_notes_name_what_is_unclear_or_worse_and_what_is_missing() -> None:
    notes = next_notes(_result(documents=10), VARIANTS)
    assert any(note.startswith("Within noise: trained teacher minus fixed kind.") for note in notes)
    assert any("did worse" in note and "raw passage minus base" in note for note in notes)
    assert any("1 of 3 rounds" in note for note in notes)
    assert any(note.startswith("Only 10 test documents") for note in notes)
    assert any("2 non_finite, 3 update_failed" in note for note in notes)
    assert any(note.startswith("No document has a score for raw") for note in notes)


def test_next_notes_count_documents_left_out() -> None:
    assert any("3 documents on which" in note for note in next_notes(_result(documents=7), VARIANTS))
    assert not any("Left out" in note for note in next_notes(_result(documents=10), VARIANTS))


def test_next_notes_of_a_clear_result_are_none() -> None:
    clear = _result(gains={"a_minus_b": SHOWN}, rounds=({"mean_reward": 0.1},))
    assert next_notes(clear, (_variant("a", "a", {f"t{i}": 0.5 for i in range(48)}),)) == ()


def test_print_report_without_a_terminal_is_plain_text() -> None:
    out = io.StringIO()
    words = closing(_result(notes=("See [bold] there.",)), Path("runs/" + "x" * 90), Path("c.yaml"))
    print_report(Console(width=80, file=out), COMPARISON, VARIANTS, {}, words)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "…" not in text
    assert "See [bold] there." in text
    assert "--work-dir runs/" + "x" * 90 in text


def _is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def _ink(path: Path) -> float:
    """Return the share of pixels that are not white."""
    from matplotlib.image import imread

    pixels = np.asarray(imread(path))[..., :3]
    return float((pixels < 0.99).any(-1).mean())


def test_plot_rewards_draws_rounds_with_and_without_rewards(tmp_path: Path) -> None:
    rounds = [_round(0), _round(1, rewards=(), kl=None), _round(2, rewards=(0.4, 0.5, 0.9))]
    for count in range(len(rounds) + 1):
        plot_rewards(rounds[:count], tmp_path / f"{count}.png")
    assert all(_is_png(path) for path in tmp_path.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png", "3.png"]
    assert _ink(tmp_path / "3.png") > _ink(tmp_path / "0.png") + 0.005


def test_plot_accuracy_draws_every_variant_the_same_each_time(tmp_path: Path) -> None:
    first, second, fewer = (tmp_path / f"{name}.png" for name in "abc")
    plot_accuracy(COMPARISON, VARIANTS, first)
    plot_accuracy(COMPARISON, VARIANTS, second)
    plot_accuracy(COMPARISON, VARIANTS[:1], fewer)
    assert _is_png(first)
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()
    assert first.read_bytes() != fewer.read_bytes()


def test_plots_leave_pyplot_alone(tmp_path: Path) -> None:
    loaded = "matplotlib.pyplot" in sys.modules
    plot_accuracy(COMPARISON, (), tmp_path / "none.png")
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_plot_to_a_missing_directory_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        plot_rewards([_round()], tmp_path / "missing" / "rewards.png")
    assert list(tmp_path.iterdir()) == []


def test_families_table_marks_those_that_no_training_had() -> None:
    families = {
        "swap": FamilyRecord(tasks=3, held_out=False, accuracy={"base": 0.0, "trained_teacher": 0.625}),
        "cycle": FamilyRecord(tasks=2, held_out=True, accuracy={"base": 0.0}),
    }
    variants = [_variant("base", "base", {}), _variant("trained_teacher", "trained teacher", {})]
    out = io.StringIO()
    Console(width=80, file=out).print(families_table(families, variants))
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["swap", "3", "0", "62"] in rows
    assert ["cycle", "*", "2", "0", "-"] in rows


def test_closing_tells_the_best_fixed_specification_and_the_oracle() -> None:
    share = Interval(mean=0.8, low=0.7, high=0.9)
    oracle = OracleRecord(
        tasks=9,
        oracle=Interval(mean=0.5, low=0.4, high=0.6),
        variants={},
        share=share,
        regret=Interval(mean=0.1, low=0.05, high=0.15),
    )
    found = SpecSearchRecord(tasks=12, fixed='{"epochs": 4}', scores={'{"epochs": 4}': 0.3, "x": None}, oracle=oracle)
    words = " ".join(closing(_result(specs=found), Path("w"), Path("c.yaml")).split())
    assert 'Best fixed specification on 12 training tasks: {"epochs": 4}, 30.0 % (2 specifications tried).' in words
    assert "Best specification of each of 9 test tasks: 50.0 [40.0, 60.0] %" in words
    assert "the trained teacher is -10.0 points from it and has 80.0 [70.0, 90.0] % of it" in words
