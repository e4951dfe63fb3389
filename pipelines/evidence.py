"""One run over several seeds, and a table of what they show: `python -m pipelines.evidence CONFIG --seeds 0 1 2`."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VARIANTS = ("base", "raw_passage", "fixed_kind", "untrained_teacher", "trained_teacher")


def run_seed(config: Path, seed: int, work_dir: Path) -> dict[str, Any]:
    """Return the result of one seed; a process of its own, so that a killed one resumes and memory is given back."""
    result = work_dir / f"seed-{seed}.json"
    command = [sys.executable, "-m", "pipelines.cli", "train-teacher", str(config), "--set", f"seed={seed}"]
    # The documents of each seed are others, too: a gain must not hang on one draw of them.
    command += ["--set", f"data.split_seed={seed}", "--work-dir", str(work_dir), "--json", str(result)]
    subprocess.run(command, check=True)
    loaded: dict[str, Any] = json.loads(result.read_text())
    return loaded


def markdown_table(results: dict[int, dict[str, Any]]) -> str:
    """Return accuracies in per cent with their intervals, a row a seed, and the gain in points."""
    shown = [name for name in VARIANTS if all(name in result["variants"] for result in results.values())]
    gain = "trained_minus_untrained"
    heads = ["seed", *(name.replace("_", " ") for name in shown), "trained − untrained"]
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for seed, result in results.items():
        cells = [_cell(result["variants"][name]) for name in shown]
        rows.append(f"| {seed} | {' | '.join(cells)} | {_cell(result['gains'][gain], signed=True)} |")
    means = [statistics.fmean(r["variants"][name]["mean"] for r in results.values()) for name in shown]
    mean_gain = statistics.fmean(r["gains"][gain]["mean"] for r in results.values())
    cells = [f"{100 * mean:.1f}" for mean in means]
    rows.append(f"| mean | {' | '.join(cells)} | {100 * mean_gain:+.1f} |")
    return "\n".join(rows)


def _cell(interval: dict[str, float], *, signed: bool = False) -> str:
    mean = f"{100 * interval['mean']:+.1f}" if signed else f"{100 * interval['mean']:.1f}"
    return f"{mean} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def main() -> None:
    """Run the seeds one after another and print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work-dir", type=Path, default=Path(".preceptor/evidence"))
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    results = {seed: run_seed(arguments.config, seed, arguments.work_dir) for seed in arguments.seeds}
    documents = {result["documents"] for result in results.values()}
    minutes = [sum(result["seconds"].values()) / 60 for result in results.values()]
    title = (
        f"{datetime.now(UTC):%Y-%m-%d}, {arguments.config}, {sorted(documents)} test documents a seed, "
        f"{min(minutes):.1f} to {max(minutes):.1f} minutes each; accuracy in %, 95 % intervals over documents"
    )
    text = f"{title}\n\n{markdown_table(results)}\n"
    (arguments.work_dir / "evidence.md").write_text(text, encoding="utf-8")
    sys.stdout.write(f"\n{text}\nsaved {arguments.work_dir / 'evidence.md'}\n")


if __name__ == "__main__":
    main()
