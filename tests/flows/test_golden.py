"""Golden results: three small runs and two nights end with the figures that were recorded when they were first made.

The figures are rewards, accuracies, gate decisions, and digests of teachers and adapters, exact to the last bit. Only
the kind of machine that they were recorded on can repeat them. A change that moves figures on purpose records them
anew: `python -m tests.flows.test_golden`.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.flows.settings import CONFIGS, preceptor, run_command, train
from tests.pipelines.adapt_student.factories import SMALL

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(1800)]

GOLDEN = Path(__file__).parent / "golden"
KNOWLEDGE = (
    "threads=1",
    "data.train_documents=6",
    "data.development_documents=2",
    "data.test_documents=6",
    "teacher.samples=4",
    "teacher.sampling.max_new_tokens=64",
    "teacher.policy={rank: 4, alpha: 8}",
    "student.update.rank=4",
    "student.update.epochs=8",
    "comparison.edits=1",
    "comparison.resamples=200",
    "comparison.keep_adapters=2",
)
PROMPTS = (
    "{name: fixed_kind, label: best fixed kind, source: {type: best_prompt, prompts: [micro-self-qa, micro-rewrite]}}"
)
SPECS = (
    "{name: fixed_spec, label: best fixed specification, source: {type: fixed_specification, tasks: 2, "
    "space: {orientations: [none, all], colourings: [0], learning_rate: [0.05], epochs: [2, 4]}}}"
)
RUNS = {
    "knowledge": (
        "demo",
        (
            *KNOWLEDGE,
            "loop={rounds: 2, documents: 3, development: {every: 1, edits: 1}}",
            f"comparison.variants=[base, raw_passage, {PROMPTS}, untrained_teacher, trained_teacher, null_edit, "
            "other_document, fixed_kind_equal_tokens, oracle]",
        ),
    ),
    "imitation": (
        "demo",
        (
            *KNOWLEDGE,
            "loop={rounds: 2, documents: 3, replicates: 2}",
            f"comparison.variants=[base, raw_passage, {PROMPTS}, untrained_teacher, trained_teacher, other_document]",
            "comparison.redraws=1",
            "teacher.reward={metric: accuracy, retention_weight: 0.5}",
            "grading={grader: {type: gold-token-recall}, max_new_tokens: 8}",
            "teacher.learning={algorithm: rest_em, keep: 2, require_gain: false, learning_rate: 2.0e-3, epochs: 2, "
            "minibatch_size: 4, micro_batch_size: 4}",
        ),
    ),
    "grids": (
        "grids-demo",
        (
            "threads=1",
            "data.train_documents=4",
            "data.development_documents=2",
            "data.test_documents=6",
            "teacher.samples=4",
            "loop={rounds: 3, documents: 4, remember: true}",
            "comparison.drafts=4",
            "comparison.resamples=200",
            "comparison.keep_adapters=1",
            f"comparison.variants=[base, raw_passage, {SPECS}, untrained_teacher, trained_teacher, other_document]",
        ),
    ),
}
"""By name: configuration and overrides."""
FIGURES = (
    *("variants", "gains", "rounds", "document_accuracy", "document_forgetting", "phrasings", "edit_tokens"),
    *("specs", "tests"),
)


# Sums are rounded alike on all of these machines, and a sampled token never differs.
INSTRUCTIONS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.fixture(autouse=True)
def _instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in INSTRUCTIONS.items():
        monkeypatch.setenv(name, value)


def machine() -> str:
    """Return what decides the last bit in the child processes: AVX2 also where more is there."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    shown = "AVX2" if capability.startswith("AVX") else capability
    return f"torch {torch.__version__}, {platform.machine()}, {shown}"


def run(arguments: Sequence[str], home: Path) -> None:
    code, output = run_command(arguments, home)
    assert code == 0, output[-4000:]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def training_run(name: str, place: Path) -> dict[str, Any]:
    """Return the figures of one run, with the digests of its teachers and kept adapters."""
    result, _ = train(place, *RUNS[name])
    found = {figure: result[figure] for figure in FIGURES}
    return {**found, "teachers": names(place / "work" / "teachers"), "adapters": names(place / "work" / "adapters")}


def two_nights(place: Path) -> list[dict[str, Any]]:
    """Return the figures of two nights in a row."""
    work = place / "work"
    overrides = [part for override in SMALL for part in ("--set", override)]
    found = []
    for number in (1, 2):
        result = place / f"night{number}.json"
        run(preceptor("inbox", "add", GOLDEN / f"night{number}.jsonl", "--work-dir", work), place / "home")
        night = preceptor("adapt-student", CONFIGS / "nights-demo.yaml", "--work-dir", work, "--json", result)
        run([*night, *overrides], place / "home")
        found.append(night_figures(json.loads(result.read_text(encoding="utf-8"))))
    return found


def night_figures(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "outcome": result["outcome"],
        "version": result["version"],
        "parent": result["parent"],
        "update": result["update"]["adapter_digest"],
        "new": [[d["title"], d["place"], d["before"], d["after"]] for d in result["new"]],
        "groups": [[g["night"], g["before"], g["after"]] for g in result["groups"]],
        "probes": [result["probes_base"], result["probes_before"], result["probes_after"]],
        "superseded": len(result["superseded"]),
        "rewards": [
            [c["edit"]["index"], c["reward"], [r["adapter_digest"] for r in c["replicates"]]]
            for c in result["candidates"]
        ],
        "gate": [[c["name"], c["verdict"], c["estimate"], c["low"]] for c in result["gate"]["checks"]],
    }


def check(found: Any, name: str) -> None:
    golden = json.loads((GOLDEN / "figures.json").read_text(encoding="utf-8"))
    if golden["machine"] != machine():
        pytest.skip(f"recorded on {golden['machine']}; to compare two checkouts here, record them in each")
    assert found == golden[name]


@pytest.mark.parametrize("name", RUNS)
def test_a_training_run_has_its_golden_figures(tmp_path: Path, name: str) -> None:
    check(training_run(name, tmp_path), name)


def test_two_nights_have_their_golden_figures(tmp_path: Path) -> None:
    check(two_nights(tmp_path), "nights")


if __name__ == "__main__":
    os.environ |= INSTRUCTIONS
    with tempfile.TemporaryDirectory() as scratch:
        recorded: dict[str, Any] = {name: training_run(name, Path(scratch) / name) for name in RUNS}
        recorded |= {"nights": two_nights(Path(scratch) / "nights"), "machine": machine()}
    (GOLDEN / "figures.json").write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
