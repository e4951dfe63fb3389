from __future__ import annotations

import math
import re

import pytest

from pipelines.experiments import bench_bank, pairs
from tests.student.factories import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("student")
    tiny_model().save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return str(place)


def test_speed_ratio_is_the_geometric_mean_with_an_interval_around_it() -> None:
    ratio, low, high = pairs.speed_ratio([1.0, 2.0, 4.0], [2.0, 4.0, 32.0])
    assert ratio == pytest.approx(math.exp(math.log(2 * 2 * 8) / 3))
    assert 2.0 <= low < ratio < high <= 8.0


def test_measure_alternates_the_order_of_the_sides() -> None:
    order: list[str] = []

    def side(name: str) -> pairs.Side:
        return lambda: order.append(name) or float(len(order))  # type: ignore[func-returns-value]

    seconds = pairs.measure(("a", "b"), (side("a"), side("b")), 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert seconds == ([1.0, 4.0, 5.0], [2.0, 3.0, 6.0])


def test_bank_and_sequential_loop_do_the_same_work_and_leave_the_base_unchanged(model: str) -> None:
    base, requests = bench_bank.open_work(model, 2, "all")
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    ours, loop = (
        bench_bank.train(base, requests)[1],
        pairs.train_sequentially(base, requests, pairs.first_weights(base, requests)),
    )
    for one, other in zip(ours, loop, strict=True):
        assert 0 < bench_bank.change_apart(one.adapter.factors, other) < 1e-4
    after = base.state_dict()
    assert set(after) == set(before)
    assert all(weight.equal(before[name]) for name, weight in after.items())


@pytest.mark.slow
def test_bank_of_another_checkout_runs_in_a_child_process(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    bench_bank.main(["--model", model, "--adapters", "1", "--pairs", "2", "--against", str(bench_bank.ROOT)])
    told = capfd.readouterr().out
    assert "bit-equal" in told
    assert "speedup of this tree over " in told


def test_one_pair_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_bank.main(["--pairs", "1"])
    assert "--pairs must be at least 2" in capsys.readouterr().err


def test_reuse_below_the_adapted_blocks_is_timed_on_updates_and_questions(capsys: pytest.CaptureFixture[str]) -> None:
    small = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    base = bench_bank.random_model({**bench_bank.SMOLLM2, **small, "num_attention_heads": 2, "num_key_value_heads": 1})
    requests = bench_bank.make_requests(bench_bank.REAL, 2, 4096, bench_bank.DEPTHS["half"])
    bench_bank.bench_training(base, requests, 2)
    bench_bank.bench_scoring(base, requests, 2)
    told = capsys.readouterr().out
    assert all(f" over {side}: " in told for side in ("bank without reuse", "sequential PEFT loop", "each whole"))
    (apart,) = re.findall(r"changes of weights differ by (\S+)", told)
    assert 0 < float(apart) < 1e-4


def test_useful_flops_count_lower_blocks_once_and_upper_ones_each_epoch() -> None:
    model = bench_bank.random_model({**bench_bank.SMOLLM2, "num_hidden_layers": 2, "vocab_size": 512})
    requests = bench_bank.make_requests(bench_bank.REAL, 1, 512, (0.5, 1.0))
    places = sum(len(sequence.tokens) - 1 for sequence in requests[0].sequences)
    block = 3 * 576 * 1536 + 2 * 576 * (576 + 192)
    factors = 6 * 16 * 3 * (576 + 1536)
    labels = sum(sum(sequence.loss_mask) for sequence in requests[0].sequences)
    expected = places * (2 * block + 8 * (4 * block + factors)) + labels * 8 * 4 * 512 * 576
    assert bench_bank.useful_flops(model, requests) == pytest.approx(expected)
