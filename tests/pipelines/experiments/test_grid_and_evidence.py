"""Grids of runs, and the document that is written from their results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evaluation.common.errors import ConfigError
from evaluation.statistics import compare
from pipelines.execution import code_digest
from pipelines.experiments import evidence, grid
from pipelines.records import RunResult, Transfer, UnknownComparison
from pipelines.settings import load
from pipelines.train_teacher.config import TrainTeacherConfig

CONFIGS = Path(__file__).parents[3] / "configs"
DEMO = CONFIGS / "demo.yaml"
LEVELS = {"base": 0.05, "other_document": 0.05, "untrained_teacher": 0.25, "trained_teacher": 0.55}


def scores(seed: int, share: float = 1.0, **levels: float) -> dict[str, dict[str, float]]:
    """Accuracies of variants on 40 documents with eight questions each."""
    generator = np.random.default_rng(seed)
    drawn = {name: generator.binomial(8, share * level, 40) / 8 for name, level in {**LEVELS, **levels}.items()}
    return {name: {f"d{i:02d}": float(value) for i, value in enumerate(values)} for name, values in drawn.items()}


def run_result(seed: int, **levels: float) -> RunResult:
    """A synthetic result."""
    accuracy, other = scores(seed, **levels), scores(seed + 100, 0.8)
    pairs = [("trained_teacher", "untrained_teacher"), ("other_document", "base")]
    found = compare(accuracy, pairs, resamples=100)
    gains = {name.replace("_teacher", ""): gain for name, gain in found.gains.items()}
    return RunResult(
        variants=found.variants,
        gains=gains,
        confidence=0.95,
        minimum_detectable={},
        rounds=(),
        seconds={"sample": 60.0, "compare": 60.0},
        documents=40,
        mlflow_run_id="run",
        config_digest="c" * 64,
        code_digest="d" * 64,
        seed=seed,
        document_accuracy=accuracy,
        document_unknown={name: values for name, values in accuracy.items() if name != "base"},
        token_probability=found.variants,
        unknown=UnknownComparison(
            phrasings=4, questions=320, unknown=300, documents=40, variants=found.variants, gains={}
        ),
        inner_runs=700,
        forgetting={"trained_teacher": found.variants["base"]},
        document_forgetting=dict.fromkeys(("untrained_teacher", "trained_teacher"), accuracy["base"]),
        transfer=Transfer(label="small", model="m", variants={}, gains={}, document_accuracy=other),
        edit_notes={"trained_teacher": {"tokens": 110.0, "parsed": 1.0}},
        phrasings={"trained_teacher": {"held-out": 0.5}},
    )


def made_of(seeds: tuple[int, ...] = (0, 1, 2), arms: dict[str, Any] | None = None) -> evidence.Evidence:
    return evidence.Evidence(
        config=load(DEMO, TrainTeacherConfig),
        seeds={seed: run_result(seed) for seed in seeds},
        reference={0: run_result(0)} if arms else {},
        arms=arms or {},
        missing=["arm, seed 0"],
        days=("2026-01-01", "2026-01-02"),
        command="make evidence",
    )


def finish(run: grid.PlannedRun, code: str) -> None:
    made = run_result(run.seed).model_copy(update={"config_digest": run.digest, "code_digest": code})
    run.result.parent.mkdir(parents=True, exist_ok=True)
    run.result.write_text(made.model_dump_json(), encoding="utf-8")


@pytest.mark.parametrize("name", ["evidence-plan.yaml", "evidence-real-plan.yaml"])
def test_shipped_plan_has_valid_configurations_for_all_runs(name: str, tmp_path: Path) -> None:
    plan = load(CONFIGS / name, grid.GridPlan)
    runs = grid.planned_runs(plan, CONFIGS / plan.config, tmp_path)
    arms = 0 if plan.arms is None else len(plan.arms.seeds) * (1 + sum(map(len, plan.arms.groups.values())))
    assert len(runs) == len(plan.seeds) + arms
    assert len({run.result for run in runs}) == len(runs)


def test_runs_are_seeds_then_reference_then_arms_each_with_its_own_documents(tmp_path: Path) -> None:
    arms = grid.ArmsPlan(groups={"Ablations": {"longer": ("loop.rounds=14",)}})
    plan = grid.GridPlan(config="demo.yaml", seeds=(0, 1), transfer_seed=1, arms=arms)
    runs = grid.planned_runs(plan, DEMO, tmp_path)
    names = [(run.group, run.name, run.seed) for run in runs]
    reference = "as configured"
    assert names == [(grid.SEEDS, "", 0), (grid.SEEDS, "", 1), (reference, reference, 0), ("Ablations", "longer", 0)]
    settled = [load(DEMO, TrainTeacherConfig, run.overrides) for run in runs]
    assert (settled[1].seed, settled[1].data.split_seed, settled[3].loop.rounds) == (1, 1, 14)
    assert settled[0].comparison.transfer is not None
    assert settled[0].comparison.transfer.model == str(tmp_path / "transfer" / "small-student")
    assert runs[0].result == runs[2].result  # the reference without common settings is the seed itself
    wrong = plan.model_copy(update={"arms": grid.ArmsPlan(groups={"A": {"wrong": ("loop.round=3",)}})})
    with pytest.raises(ConfigError, match="wrong, seed 0"):
        grid.planned_runs(wrong, DEMO, tmp_path)


def test_result_is_valid_only_for_its_configuration_and_code(tmp_path: Path) -> None:
    run = grid.planned_runs(grid.GridPlan(config="demo.yaml"), DEMO, tmp_path)[0]
    assert grid.read_result(run) is None
    finish(run, "a" * 64)
    assert grid.read_result(run) == grid.read_result(run, "a" * 64) is not None
    assert grid.read_result(run, "b" * 64) is None
    assert grid.read_result(run._replace(digest="e" * 64)) is None
    run.result.write_text(run.result.read_text()[:100], encoding="utf-8")
    assert grid.read_result(run) is None


def test_failed_run_stops_the_others_and_finished_runs_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.experiments.grid.LANES", 1)
    content = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    content["data"] = {"type": "jsonl", "path": str(tmp_path / "none.jsonl"), "development_documents": 1}
    lines: list[str] = []
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    plan = grid.GridPlan(config="config.yaml", seeds=(0, 1, 2))
    runs = grid.planned_runs(plan, config, tmp_path)
    finish(runs[0], code_digest())
    with pytest.raises(
        grid.GridError, match=r"(?s)seed 1: failed with exit code 2.*none\.jsonl.*To resume: make evidence"
    ):
        grid.run_all(plan, config, runs, tmp_path, "make evidence", lines.append)
    assert [line.split(";")[0] for line in lines] == ["all variants, seed 1: started"]


def test_document_has_all_tables_and_plots(tmp_path: Path) -> None:
    arms = {"Ablations": {"worse": {0: run_result(0, trained_teacher=0.3)}, "other seed": {5: run_result(5)}}}
    text = evidence.write_document(made_of(arms=arms), tmp_path / "evidence.md").read_text(encoding="utf-8")
    titles = ["Variants", "Notes", "Differences", "What the base does not know"]
    titles += ["Phrasings of the questions", "Retention"]
    titles += ["Self-edits", "Another student", "What each setting is worth", "Ablations"]
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == titles
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(links) == 2
    assert all((tmp_path / link).read_bytes().startswith(b"\x89PNG") for link in links)
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert re.search(r"^\| worse \|.*below 0", text, flags=re.MULTILINE)
    assert "Without a result: arm, seed 0." in text


def test_gain_and_kept_share_agree_with_means_by_hand() -> None:
    results = made_of().seeds
    here, there = (
        np.mean([np.mean(evidence.paired(s, "trained_teacher", "untrained_teacher")) for s in side])
        for side in ([r.document_accuracy for r in results.values()], [scores(seed + 100, 0.8) for seed in results])
    )
    gain, kept = evidence.pooled(evidence.differences(results)), evidence.kept(results)
    assert gain is not None
    assert kept is not None
    assert gain.mean == pytest.approx(here)
    assert kept.mean == pytest.approx(there / here)
    assert evidence.kept({0: results[0].model_copy(update={"transfer": None})}) is None
    assert evidence.kept({}) is None


def test_notes_are_preserved_and_broken_markers_refused(tmp_path: Path) -> None:
    path = evidence.write_document(made_of((0,)), tmp_path / "evidence.md")
    first = path.read_text(encoding="utf-8")
    noted = first.replace(f"{evidence.OPEN}\n\n", f"{evidence.OPEN}\nWhy *it* failed:\n")
    path.write_text(noted.replace("# Evidence", "# Mine"), encoding="utf-8")
    evidence.write_document(made_of((0,)), tmp_path / "evidence.md")
    assert path.read_text(encoding="utf-8") == noted
    for text in (evidence.OPEN, f"{evidence.CLOSE}{evidence.OPEN}", 2 * f"{evidence.OPEN}{evidence.CLOSE}"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="correct the markers"):
            evidence.write_document(made_of((0,)), tmp_path / "evidence.md")
        assert path.read_text(encoding="utf-8") == text


def test_command_writes_available_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, work = tmp_path / "evidence-own-plan.yaml", tmp_path / "work"
    plan.write_text("config: demo.yaml\nseeds: [0, 1]\ncommon: [loop.rounds=2]\n")
    (tmp_path / "demo.yaml").write_bytes(DEMO.read_bytes())
    arguments = [str(plan), "--work-dir", str(work), "--out", str(tmp_path), "--only", "document"]
    arguments += ["--set", "loop.documents=3"]
    with pytest.raises(SystemExit) as caught:
        evidence.main(arguments)
    assert caught.value.code == 2
    assert "no seed of the plan has a result" in capsys.readouterr().err
    told = grid.GridPlan(config="demo.yaml", seeds=(0, 1), common=("loop.rounds=2", "loop.documents=3"))
    finish(grid.planned_runs(told, tmp_path / "demo.yaml", work)[0], "a" * 64)
    evidence.main(arguments)
    text = (tmp_path / "evidence-own.md").read_text(encoding="utf-8")
    assert text.startswith("# Evidence: own\n")
    assert "Without a result: all variants, seed 1." in text
    assert "--set loop.documents=3" in text
    assert "in 2 rounds of 3 documents" in text
