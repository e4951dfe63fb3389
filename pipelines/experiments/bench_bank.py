"""Time the LoRA bank against a sequential PEFT loop or another checkout: `python -m pipelines.experiments.bench_bank`.

Both train the same random sequences, sized like the demo's self-edits, in pairs of alternating order. The speedup is a
geometric mean over pairs with its bootstrap interval.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a worker runs this file with the modules of another checkout
    from pipelines.experiments.pairs import Side

ROOT = Path(__file__).resolve().parents[2]
LINES, LENGTHS = 6, (8, 16)
"""Training sequences per adapter, and the range of their lengths in tokens."""
RECIPE = {"rank": 8, "alpha": 16.0, "learning_rate": 5e-3, "epochs": 16, "batch_size": 16}


def make_requests(adapters: int, vocabulary: int) -> list[Any]:
    """Return updates of all linear layers on random tokens with loss on each."""
    from student.config import UpdateRecipe
    from student.updates import TrainingSequence, UpdateRequest

    generator, recipe = random.Random(0), UpdateRecipe.model_validate(RECIPE)
    made = []
    for number in range(adapters):
        lines = [[generator.randrange(vocabulary) for _ in range(generator.randint(*LENGTHS))] for _ in range(LINES)]
        sequences = tuple(TrainingSequence(tuple(line), (True,) * len(line)) for line in lines)
        made.append(UpdateRequest(f"random#{number}", sequences, recipe, number))
    return made


def train_in_bank(model: Any, requests: Sequence[Any]) -> list[Any]:
    """Return the adapters of a bank that is opened and closed; raises RuntimeError if an update failed."""
    from student.bank.bank import LoraBank

    with LoraBank(model, base_digest="") as bank:
        results = bank.train(requests)
    if failed := [result for result in results if result.adapter is None]:
        raise RuntimeError(f"bench_bank: update {failed[0].key!r} failed, {failed[0].outcome}: {failed[0].detail}.")
    return [result.adapter for result in results]


def open_sides(place: str, adapters: int) -> tuple[Side, Side, float]:
    """Return bank and sequential loop after a warm-up, and the relative distance of their first weight changes B A."""
    import torch

    from pipelines.experiments.pairs import first_weights, timed, train_sequentially

    model, requests = open_work(place, adapters)
    starts = first_weights(model, requests)
    ends = train_in_bank(model, requests)[0].factors, train_sequentially(model, requests[:1], starts)[0]
    changes = [torch.cat([(b @ a).flatten() for _, (a, b) in sorted(factors.items())]) for factors in ends]
    apart = float((changes[0] - changes[1]).norm() / changes[1].norm())
    bank, loop = partial(train_in_bank, model, requests), partial(train_sequentially, model, requests, starts)
    return partial(timed, bank), partial(timed, loop), apart


def time_worker(tree: Path, place: str, adapters: int, digests: set[str]) -> float:
    """Return the seconds of a checkout's bank in its own process, after a warm-up; add its adapters' digests."""
    command = [sys.executable, "-P", __file__, "--worker", "--model", place, "--adapters", str(adapters)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"bench_bank: the bank of {tree} failed; its error is above. Is it a checkout?")
    seconds, digest = json.loads(done.stdout)
    digests.add(digest)
    return float(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.experiments.bench_bank", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side, at least 2 [5]")
    parser.add_argument("--against", type=Path, help="checkout to compare with [a sequential PEFT loop]")
    parser.add_argument("--model", default="micro-student", help="directory, hub name or micro model [micro-student]")
    parser.add_argument("--adapters", type=int, default=64, help="trained in each run [64]")
    parser.add_argument("--workload", choices=("smollm2", "smollm2-scoring"), help="reuse below the adapted blocks")
    parser.add_argument("--depth", choices=("half", "third"), default="half", help="adapted upper part of it [half]")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.pairs < 2:
        parser.error("--pairs must be at least 2")
    if chosen.workload is not None:
        from pipelines.experiments.bench_reuse import run

        run(chosen.workload, chosen.depth, chosen.adapters, chosen.pairs)
        return
    if chosen.worker:
        # An editable installation would import this tree's modules.
        sys.meta_path[:] = [e for e in sys.meta_path if not getattr(e, "__module__", "").startswith("__editable__")]
        work = partial(train_in_bank, *open_work(chosen.model, chosen.adapters))
        digest = " ".join(adapter.digest for adapter in work())
        gc.collect()
        begun = time.perf_counter()
        work()
        print(json.dumps([time.perf_counter() - begun, digest]))
        return
    from evaluation.common.checkpoints import resolve_model
    from pipelines.experiments.pairs import measure, speed_ratio
    from pipelines.reports.format import markdown_table

    place, adapters, digests = resolve_model(chosen.model), chosen.adapters, set[str]()
    if chosen.against is None:
        *sides, apart = open_sides(place, adapters)
        names, note = ("bank", "sequential PEFT loop"), f"Relative distance of their weight changes: {apart:.1e}."
        seconds = measure(names, (sides[0], sides[1]), chosen.pairs)
    else:
        ours, theirs = (partial(time_worker, t, place, adapters, digests) for t in (ROOT, chosen.against.resolve()))
        names = "this tree", str(chosen.against)
        seconds = measure(names, (ours, theirs), chosen.pairs)
        note = f"Their adapters are {'bit-equal' if len(digests) == 1 else 'not equal'}."
    rows = []
    for name, taken in zip(names, seconds, strict=True):
        each = [one / adapters for one in taken]
        rows.append([name, f"{statistics.median(each):.3g} [{min(each):.3g}, {max(each):.3g}]"])
    print(markdown_table(["side", "seconds per adapter, median [lowest, highest]"], rows))
    ratio, low, high = speed_ratio(seconds[0], seconds[1])
    print(f"\nspeedup of {names[0]} over {names[1]}: {ratio:.2f} [{low:.2f}, {high:.2f}]. {note}")


def open_work(place: str, adapters: int) -> tuple[Any, list[Any]]:
    """Return the frozen base and the updates."""
    from pipelines.process import prepare_process

    prepare_process()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place, dtype="float32").eval().requires_grad_(False)
    return model, make_requests(adapters, model.get_input_embeddings().weight.shape[0])


if __name__ == "__main__":
    main()
