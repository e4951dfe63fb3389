from __future__ import annotations

import math

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
    *_, apart = bench_bank.open_sides(model, 2)
    assert 0 < apart < 1e-4
    base, requests = bench_bank.open_work(model, 2)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    starts = pairs.first_weights(base, requests)
    assert len(pairs.train_sequentially(base, requests, starts)) == 2
    after = base.state_dict()
    assert set(after) == set(before)
    assert all(weight.equal(before[name]) for name, weight in after.items())


@pytest.mark.slow
def test_bank_of_another_checkout_runs_in_a_child_process(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    bench_bank.main(["--model", model, "--adapters", "1", "--pairs", "2", "--against", str(bench_bank.ROOT)])
    assert "bit-equal" in capfd.readouterr().out


def test_one_pair_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_bank.main(["--pairs", "1"])
    assert "--pairs must be at least 2" in capsys.readouterr().err
