"""The document over seeds and arms, made of results that never happened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.errors import ConfigError
from evaluation.statistics import SMALL_GROUPS
from pipelines.config import load_config
from pipelines.evidence import arms, claims, over_seeds, tables
from pipelines.evidence.__main__ import main
from pipelines.evidence.cells import difference, p_value, percent, points, reading
from pipelines.evidence.claims import Claim
from pipelines.evidence.document import CLOSE, OPEN, Evidence, kept_notes, write_document
from pipelines.evidence.learning_tables import of_three
from pipelines.evidence.over_seeds import Results
from pipelines.records import Interval
from pipelines.results import RunResult
from tests.pipelines.evidence_parts import LEVELS, around, reliability, run_result
from tests.pipelines.factories import make_result

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_seeds, "RESAMPLES", 400)


@pytest.fixture(scope="module")
def three() -> dict[int, RunResult]:
    return {seed: run_result(seed) for seed in (0, 1, 2)}


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def row(table: str, name: str) -> list[str]:
    return next(cells for cells in rows(table) if cells[0].strip("*") == name)


def interval(cell: str) -> tuple[float, float, float]:
    mean, low, high = map(float, re.findall(r"-?\d+\.\d", cell)[:3])
    return mean, low, high


def exact_result(shift: float = 0.0, without: str | None = None) -> RunResult:
    """Return a result of four documents, whose trained teacher is moved by `shift` and others have no spread."""
    means = {"base": 0.0, "fixed_kind": 0.3, "untrained_teacher": 0.2, "trained_teacher": 0.5 + shift}
    means = {name: mean for name, mean in means.items() if name != without}
    gains = {
        "trained_minus_untrained": around(0.3 + shift, 0.05),
        "trained_minus_fixed_kind": around(0.2 + shift, 0.05),
    }
    if without is not None:
        del gains["trained_minus_fixed_kind"]
    spread = (-0.1, 0.1, -0.1, 0.1)
    accuracy = {
        name: {f"d{i}": mean + (s if name == "trained_teacher" else 0.0) for i, s in enumerate(spread)}
        for name, mean in means.items()
    }
    accuracy["base"]["only-base"] = 1.0  # a document on which others failed, so that it is not compared
    return make_result("run").model_copy(
        update={
            "variants": {name: around(mean, 0.05) for name, mean in means.items()},
            "gains": gains,
            "document_accuracy": accuracy,
            "edit_tokens": {"untrained_teacher": 80.0 + 100 * shift, "trained_teacher": 112.0},
            "documents": 4,
        }
    )


def test_variants_have_a_column_a_seed_and_one_over_all_with_intervals_and_mean_tokens() -> None:
    table = tables.variants_table({0: exact_result(-0.1), 7: exact_result(0.1)})
    assert rows(table)[0] == ["accuracy, %", "seed 0", "seed 7", "all seeds", "tokens"]
    assert len({len(cells) for cells in rows(table)}) == 1
    assert row(table, "trained teacher")[1:3] == ["40.0 [35.0, 45.0]", "60.0 [55.0, 65.0]"]
    mean, low, high = interval(row(table, "trained teacher")[3])
    assert mean == 50.0
    assert 30.0 <= low <= 40.0  # far wider than any seed's own interval: the seeds differ
    assert 60.0 <= high <= 70.0
    # Eight documents of which none had a hit: the rule of three, 1 - 0.05 ** (1 / 8).
    assert row(table, "base student, no update")[3] == "**0.0 [0.0, 31.2]**"
    assert row(table, "untrained teacher")[4] == "80"
    assert row(table, "best fixed kind")[4] == "–"


def test_differences_over_seeds_are_paired_and_known_only_where_every_seed_has_both() -> None:
    both = {0: exact_result(-0.1), 7: exact_result(0.1)}
    found = over_seeds.gain(both, "trained_minus_untrained")
    assert found is not None
    assert found.bootstrap.mean == pytest.approx(0.3)
    assert found.effects is not None
    assert found.effects.mean == pytest.approx(0.3)
    assert found.effects.low < found.bootstrap.low  # two seeds: the t distribution of one degree of freedom
    lacking = {0: exact_result(), 1: exact_result(without="fixed_kind")}
    assert over_seeds.gain(lacking, "trained_minus_fixed_kind") is None
    told = row(tables.gains_table(lacking), "trained − fixed kind")
    assert told == ["trained − fixed kind", "–", "–", "–", "–"]


def test_difference_without_spread_has_no_random_effects_but_an_exact_bound() -> None:
    found = over_seeds.gain({0: exact_result(), 1: exact_result()}, "untrained_minus_base")
    assert found is not None
    assert found.effects is None
    assert found.bootstrap.low < 0.2 < found.bootstrap.high


def test_one_seed_has_a_column_over_all_too() -> None:
    mean, low, high = interval(row(tables.variants_table({5: exact_result()}), "trained teacher")[2])
    assert (mean, low >= 40.0, high <= 60.0) == (50.0, True, True)
    found = over_seeds.gain({5: exact_result()}, "trained_minus_untrained")
    assert found is not None
    assert found.effects is None  # one seed says nothing of others


def test_tables_are_the_same_each_time(three: Results) -> None:
    assert tables.gains_table(three) == tables.gains_table(three)


@given(st.permutations(sorted(LEVELS)))
@settings(max_examples=10, deadline=None)
def test_sides_of_a_gain_are_found_whatever_the_order_of_variants(names: list[str]) -> None:
    assert over_seeds.sides("trained_minus_fixed_kind_equal_tokens", names) == (
        "trained_teacher",
        "fixed_kind_equal_tokens",
    )
    assert over_seeds.sides("trained_minus_proxy", names) == ("trained_teacher", "proxy_teacher")
    assert over_seeds.sides("trained_minus_nothing", names) is None
    assert over_seeds.sides("trained", names) is None


def test_few_seeds_come_with_a_caution_and_enough_without() -> None:
    assert "tell nothing of how another seed" in tables.few_seeds(1)
    assert tables.few_seeds(3).startswith("Bootstrap intervals over 3 seeds are too narrow")
    assert tables.few_seeds(SMALL_GROUPS - 1) != ""
    assert tables.few_seeds(SMALL_GROUPS) == ""


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_reading_says_noise_if_and_only_if_the_interval_holds_zero(mean: float, below: float, above: float) -> None:
    found = Interval(mean=mean, low=mean - below, high=mean + above)
    assert (reading(found) == "within noise") == (found.low <= 0.0 <= found.high)


def test_figures_have_one_decimal_and_no_negative_zero() -> None:
    assert difference(Interval(mean=-0.0001, low=-0.1234, high=0.0)) == "+0.0 [-12.3, +0.0]"
    assert (percent(0.12345), points(0.2), percent(None)) == ("12.3", "+20.0", "–")
    assert (p_value(0.0004), p_value(0.0312), p_value(None)) == ("< 0.001", "0.031", "–")


@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0))
@settings(max_examples=30, deadline=None)
def test_three_updates_are_more_reliable_than_one_by_the_spearman_brown_formula(between: float, within: float) -> None:
    record = reliability(0.5).model_copy(update={"between_variance": between, "within_variance": within})
    one = between / (between + within)
    assert of_three(record) == pytest.approx(3 * one / (1 + 2 * one))
    assert of_three(record.model_copy(update={"between_variance": -between})) == 0.0


def test_tokens_phrasings_and_retention_are_tabled_with_their_paired_differences(three: Results) -> None:
    at = row(tables.budgets_table(three), "120")
    assert at[1].endswith("(108)")
    assert interval(at[3])[0] == pytest.approx(interval(at[2])[0] - interval(at[1])[0], abs=0.11)
    assert row(tables.phrasings_table(three), "trained − untrained, points")[1:] == ["+30.0", "+30.0"]
    last = rows(tables.retention_table(three))[-1]
    assert last[0] == "trained − untrained"
    assert interval(last[4])[1] < 0.0 < interval(last[4])[2]
    priced = row(tables.retention_table(three), "trained teacher")
    lost, learned = (float(np.mean(values)) for values in zip(*_lost_and_learned(three), strict=True))
    assert float(priced[5].split()[0]) == pytest.approx(lost / learned, abs=0.006)
    bare = {0: run_result(0, documents=10, extras=False)}
    assert [tables.budgets_table(bare), tables.phrasings_table(bare), tables.retention_table(bare)] == ["", "", ""]


def _lost_and_learned(results: Results) -> list[tuple[float, float]]:
    def mean(scores: Mapping[str, float]) -> float:
        return float(np.mean(list(scores.values())))

    name = "trained_teacher"
    return [
        (mean(r.document_forgetting[name]), mean(r.document_accuracy[name]) - mean(r.document_accuracy["base"]))
        for r in results.values()
    ]


def verdicts(results: Results, metric: str = "probability") -> dict[str, Claim]:
    names = ("gain", "templates", "tokens", "kept", "before", "last", "retention", "other")
    return dict(zip(names, claims.claims(results, metric), strict=True))


def test_every_claim_is_met_by_figures_that_show_it(three: Results) -> None:
    found = verdicts(three)
    assert {claim.verdict for claim in found.values()} == {"met"}
    assert "within noise" in found["retention"].remark
    assert claims.negative_results(list(found.values())) == "Nothing that was to be shown is missing."


@pytest.mark.parametrize(
    ("claim", "result"),
    [
        ("gain", {"changes": {"trained_teacher": 0.40}}),
        ("gain", {"documents": 90}),
        ("templates", {"changes": {"trained_teacher": 0.44}}),
        ("tokens", {"changes": {"fixed_kind_equal_tokens": 0.55}}),
        ("kept", {"there": 0.5}),
        ("before", {"of_three": 0.75}),
        ("last", {"of_three": 0.75}),
        ("retention", {"lost": 0.1}),
        ("other", {"changes": {"other_document": 0.12}}),
    ],
)
def test_claim_is_not_met_by_figures_that_fall_short_and_is_listed(claim: str, result: Mapping[str, object]) -> None:
    found = verdicts({0: run_result(0, **result)})  # type: ignore[arg-type]
    assert found[claim].verdict == "NOT met"
    told = claims.claims_table(list(found.values()))
    assert row(told, found[claim].what)[3].startswith("**NOT met**")
    listed = told.partition("Negative results:")[2]
    assert f"- {found[claim].what}: wanted {found[claim].wanted}; measured {found[claim].measured}" in listed


def test_claim_at_equal_tokens_within_noise_is_said_to_be_so() -> None:
    found = verdicts({0: run_result(0, {"fixed_kind_equal_tokens": 0.55})})["tokens"]
    assert (found.verdict, found.remark) == ("NOT met", "within noise")


def test_reliability_from_more_updates_than_allowed_is_not_met(three: Results) -> None:
    many = {seed: r.model_copy(update={"reliability": reliability(0.9, runs=3.5)}) for seed, r in three.items()}
    assert verdicts(many)["last"].verdict == "NOT met"
    assert verdicts(many)["before"].verdict == "met"


def test_claims_without_figures_are_not_measured_and_never_met() -> None:
    found = verdicts({0: make_result("run")})
    assert {claim.verdict for claim in found.values()} == {"not measured"}
    assert claims.negative_results(list(found.values())).count("not measured") == len(found)
    # A metric that the pilot did not look at tells nothing.
    assert verdicts({0: run_result(0, extras=False)}, "proxy")["before"].verdict == "not measured"


@pytest.fixture(scope="module")
def groups() -> dict[str, dict[str, dict[int, RunResult]]]:
    reference = run_result(0, extras=False)
    trained = reference.document_accuracy["trained_teacher"]
    shuffled = dict(zip(trained, np.random.default_rng(0).permutation(list(trained.values())).tolist(), strict=True))
    noise = reference.model_copy(
        update={"document_accuracy": {**reference.document_accuracy, "trained_teacher": shuffled}, "inner_runs": 700}
    )
    return {
        "Ablations": {"no halving": {0: run_result(0, {"trained_teacher": 0.45}, extras=False)}, "cheaper": {0: noise}},
        "Algorithms": {"better": {0: run_result(0, {"trained_teacher": 0.70}, extras=False)}},
    }


def test_arms_are_compared_by_document_and_read_by_their_intervals(
    groups: dict[str, dict[str, dict[int, RunResult]]],
) -> None:
    reference = {0: run_result(0, extras=False)}
    found = arms.compare_arms(reference, groups["Ablations"])
    better = arms.compare_arms(reference, groups["Algorithms"])
    by_hand = [
        groups["Ablations"]["no halving"][0].document_accuracy["trained_teacher"][d] - score
        for d, score in reference[0].document_accuracy["trained_teacher"].items()
    ]
    assert found["no halving"].interval.mean == pytest.approx(np.mean(by_hand))
    assert found["no halving"].p <= found["no halving"].adjusted < 0.05
    assert found["cheaper"].interval.mean == pytest.approx(0.0, abs=1e-9)
    sentences = arms.arms_sentences("as configured", groups["Ablations"], found).splitlines()
    assert sentences[0].endswith("none.")
    assert "Worse than *as configured*" in sentences[1]
    assert "no halving -" in sentences[1]
    assert "cheaper +0.0" in sentences[2]
    assert "with 78 % of the updates" in sentences[2]
    assert "better +" in arms.arms_sentences("as configured", groups["Algorithms"], better).splitlines()[0]
    table = rows(arms.arms_table("as configured", reference, groups["Ablations"], found))
    assert [cells[0] for cells in table[2:]] == ["as configured", "no halving", "cheaper"]
    assert table[2][4:] == ["–", "–", "–", "900", "8.0"]
    assert table[3][6] == "below 0"
    assert table[4][7] == "700"
    forgotten = {"trained_teacher": {"test-0": 0.25, "test-1": 0.25}}
    with_probes = {0: reference[0].model_copy(update={"document_forgetting": forgotten})}
    assert rows(arms.arms_table("as configured", with_probes, {}, {}))[2][3].startswith("+25.0")


def test_arm_of_another_seed_is_not_compared() -> None:
    one, other = {0: run_result(0, documents=8, extras=False)}, {1: run_result(1, documents=8, extras=False)}
    assert arms.compare_arms(one, {"other": other}) == {}
    assert "for want of a common document: other" in arms.arms_sentences("as configured", {"other": other}, {})


def test_arms_that_were_run_once_come_with_the_spread_between_seeds(three: Results) -> None:
    told = arms.arms_caution([0], three)
    assert "Each arm was run once" in told
    assert re.search(r"standard deviation of \d+\.\d points", told)
    assert "run once" not in arms.arms_caution([0, 1], three)


def evidence(seeds: Results, groups: Mapping[str, Mapping[str, Results]]) -> Evidence:
    return Evidence(
        config=load_config(DEMO),
        seeds=seeds,
        reference="as configured",
        reference_results={0: run_result(0, extras=False)} if groups else {},
        arms=groups,
        missing=["dpo, seed 0"],
        dates=("2026-01-01", "2026-01-02"),
        machine="2 CPU cores, torch 2.13",
        command="make evidence",
    )


def test_document_holds_every_part_and_its_pictures_and_tables_are_even(
    tmp_path: Path, three: Results, groups: dict[str, dict[str, dict[int, RunResult]]]
) -> None:
    path, head = write_document(evidence(three, groups), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert head in text
    titles = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert titles[:2] == ["Variants", "What was to be shown"]
    assert {"Differences", "Equal tokens", "Retention", "Another student", "What each setting is worth"} < set(titles)
    for link in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text):
        assert (tmp_path / link).read_bytes().startswith(PNG)
    assert len(list((tmp_path / "evidence").iterdir())) == 4
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    for told in ("2026-01-01 to 2026-01-02", "2 CPU cores, torch 2.13", "`make evidence`", "yet: dpo, seed 0"):
        assert told in text
    assert list(tmp_path.glob(".*")) == []


def test_notes_of_people_survive_and_the_rest_is_written_anew(tmp_path: Path) -> None:
    small = evidence({0: run_result(0, documents=10, extras=False)}, {})
    path, _ = write_document(small, tmp_path)
    first = path.read_text(encoding="utf-8")
    assert kept_notes(path) == "\n\n"
    mine = "\nWhy `rwr` *failed*:\n\n| a | b |\n"
    path.write_text(first.replace(f"{OPEN}\n\n", f"{OPEN}{mine}").replace("# Evidence", "# Mine"), encoding="utf-8")
    write_document(small, tmp_path)
    assert path.read_text(encoding="utf-8") == first.replace(f"{OPEN}\n\n", f"{OPEN}{mine}")


@pytest.mark.parametrize("text", [OPEN, CLOSE, f"{CLOSE}{OPEN}", f"{OPEN}{CLOSE}{OPEN}{CLOSE}"])
def test_notes_that_cannot_be_told_from_the_rest_are_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "evidence.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="mend the marks"):
        write_document(evidence({0: run_result(0, documents=10, extras=False)}, {}), tmp_path)
    assert path.read_text(encoding="utf-8") == text
    assert not (tmp_path / "evidence").exists()


def test_command_writes_what_there_is_and_says_what_to_type_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.evidence.plan import load_plan
    from pipelines.evidence.runs import planned_runs

    plan = tmp_path / "plan.yaml"
    plan.write_text("config: demo.yaml\nseeds: [0, 1]\narms: {groups: {A: {longer: [loop.rounds=14]}}}\n")
    (tmp_path / "demo.yaml").write_text(DEMO.read_text(encoding="utf-8"), encoding="utf-8")
    work, out = tmp_path / "work", tmp_path / "docs"
    arguments = [str(plan), "--work-dir", str(work), "--out", str(out), "--only", "document"]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "has no result of a seed" in capsys.readouterr().err
    runs = planned_runs(load_plan(plan), tmp_path / "demo.yaml", work)
    for run in (runs[0], runs[3]):  # the second one is an arm; the reference is the first seed itself
        run.result.parent.mkdir(parents=True, exist_ok=True)
        made = run_result(run.seed, documents=10, extras=False).model_copy(update={"config_digest": run.digest})
        run.result.write_text(made.model_dump_json(), encoding="utf-8")
    main(arguments)
    printed, text = capsys.readouterr().out, (out / "evidence.md").read_text(encoding="utf-8")
    assert printed.startswith("## Variants")
    assert "1 of 4 runs have no result yet" in printed
    assert printed.rstrip().endswith(f"--work-dir {work} --out {out}")
    assert "longer" in text
    assert "without a result yet: all variants, seed 1" in text
