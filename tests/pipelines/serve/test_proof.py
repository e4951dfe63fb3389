"""The proof: what counts as the registered adapter's answer, and reference answers by transformers and PEFT."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.common.checkpoints import load_checkpoint, model_digest
from evaluation.common.errors import ConfigError, ServeError
from pipelines.serve.engine import Launch, chosen_engine, vllm_command
from pipelines.serve.proof import Probe, Written, compare, reference, zero_adapter
from student.adapters import save_adapter
from tests.vllm_parts import random_adapter

TOLERANCE = 0.01
USUAL = Probe([1], [5, 6], [-0.1, -0.2], [-2.0, -2.0])


def written(tokens: Iterable[int], *tops: Mapping[int, float]) -> Written:
    return list(zip(tokens, tops, strict=True))


@pytest.mark.parametrize(
    ("answer", "equal", "ties"),
    [
        (written([5, 6], {5: -0.101}, {6: -0.2}), 1, 0),
        (written([5, 7], {5: -0.1}, {7: -0.199, 6: -0.201}), 0, 1),  # two tokens as likely as each other
        (written([5, 6], {5: -0.1}, {6: -0.25}), 0, 0),  # the right tokens, other weights
        (written([5, 7], {5: -0.1}, {7: -0.1, 6: -0.2}), 0, 0),  # another token, likelier by more than rounding
        (written([5, 7], {5: -0.1}, {7: -0.1}), 0, 0),  # the reference's token not even among the likeliest
        (written([5, 6], {5: -2.0}, {6: -2.0}), 0, 0),  # the base in the adapter's place
        (written([5], {5: -0.1}), 0, 0),
        (written([5, 6], {5: math.nan}, {6: -0.2}), 0, 0),
        ([], 0, 0),
    ],
)
def test_registered_adapters_answer_passes_and_anything_else_fails(answer: Written, equal: int, ties: int) -> None:
    proof = compare([USUAL], [answer], TOLERANCE)
    assert proof.passed == bool(equal or ties)
    assert proof.passed != ("not the registered adapter's" in proof.reason)
    assert not proof.passed or (proof.equal, proof.ties, proof.told_apart) == (equal, ties, 1)


def test_adapter_that_no_probe_tells_from_its_base_fails_unless_it_is_zero() -> None:
    alike, answers = [Probe([1], [5], [-0.1], [-0.1])], [written([5], {5: -0.1})]
    assert "tells the adapter from its base" in compare(alike, answers, TOLERANCE).reason
    assert compare(alike, answers, TOLERANCE, zero=True).passed


@given(st.lists(st.tuples(st.lists(st.floats(-20, 0), min_size=1, max_size=6), st.floats(0, 0.1)), min_size=1))
def test_passes_exactly_when_no_difference_is_above_the_tolerance(rows: list[tuple[list[float], float]]) -> None:
    probes = [Probe([1], list(range(len(own))), own, [v - 1 for v in own]) for own, _ in rows]
    answers = [written(range(len(own)), *({i: v - off} for i, v in enumerate(own))) for own, off in rows]
    worst = max(abs((v - off) - v) for own, off in rows for v in own)
    proof = compare(probes, answers, TOLERANCE)
    assert (proof.passed, proof.max_logprob_difference) == (worst <= TOLERANCE, worst)


def test_reference_is_reproducible_unlike_the_base_and_of_the_adapters_own_base(tmp_path: Path) -> None:
    adapter = random_adapter(load_checkpoint("micro-student").model, 1)
    rounded = model_digest(load_checkpoint("micro-student", dtype=torch.bfloat16).model)  # recorded by such a training
    place = save_adapter(replace(adapter, base_digest=rounded), tmp_path / "adapter")
    probes = reference("micro-student", place)
    assert reference("micro-student", place) == probes != reference("micro-student", place, "bfloat16")

    def said(of: Sequence[list[float]]) -> list[Written]:
        return [
            written(p.tokens, *({t: v} for t, v in zip(p.tokens, o, strict=True)))
            for p, o in zip(probes, of, strict=True)
        ]

    proof = compare(probes, said([p.logprobs for p in probes]), 1e-6)
    assert (proof.passed, proof.equal, proof.told_apart) == (True, 8, 8)
    assert not compare(probes, said([p.base_logprobs for p in probes]), 1e-3).passed
    zero = reference("micro-student", zero_adapter(adapter, tmp_path / "zero"))
    assert all(probe.logprobs == probe.base_logprobs for probe in zero)
    other = save_adapter(replace(adapter, base_digest="0" * 64), tmp_path / "other")
    with pytest.raises(ServeError, match="trained on the base '000000000000'"):
        reference("micro-student", other)


def test_vllm_gets_the_rank_it_needs_the_layers_and_loopback() -> None:
    launch = Launch("micro-student", 9, ("k_proj", "q_proj"), arguments=("--max-model-len", "64"))
    line = " ".join(vllm_command(launch, 1234))
    assert "--max-lora-rank 16 --lora-target-modules k_proj q_proj" in line
    assert "--host 127.0.0.1 --port 1234" in line
    assert "--enforce-eager" in line
    assert line.endswith("--max-model-len 64")
    assert "--enforce-eager" not in vllm_command(launch._replace(device="cuda"), 1234)


def test_engine_is_vllm_where_it_is_installed_and_else_the_embedded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, chosen in ((True, "vllm"), (False, "embedded")):
        monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm") if installed else None)
        if installed:
            sys.modules["vllm"].__spec__ = ModuleSpec("vllm", None)
        assert chosen_engine("auto") == chosen
        assert chosen_engine("embedded") == "embedded"
    with pytest.raises(ServeError, match=r"not installed\..*--engine embedded"):
        chosen_engine("vllm")
    with pytest.raises(ConfigError, match="--max-lora-rank"):
        chosen_engine("auto", ("--max-lora-rank", "64"))
