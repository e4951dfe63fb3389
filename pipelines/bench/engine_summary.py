"""From timed calls to figures: rates, paired ratios, and how soon a slow start is made up for."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from pipelines.bench.common import Spread, paired_ratios
from pipelines.bench.engine_records import ENGINES, EngineBenchResult, EngineName, Runs
from teacher.samplers import Completion


def equal_share(first: Sequence[Completion], second: Sequence[Completion]) -> float:
    """Return the share of completions, at least one, that have the same tokens and the same end in both; in [0, 1]."""
    return statistics.fmean(
        (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        for one, other in zip(first, second, strict=True)
    )


def sample_ratios(runs: Mapping[EngineName, Mapping[int, Runs]]) -> dict[int, Spread]:
    """Return by prompts of a call how many times as many samples per second vLLM makes, pair by pair."""
    slow, fast = runs["transformers"], runs["vllm"]
    return {size: paired_ratios(slow[size].seconds, fast[size].seconds) for size in slow}


def token_ratios(runs: Mapping[EngineName, Mapping[int, Runs]]) -> dict[int, Spread]:
    """Return by prompts of a call how many times as many new tokens per second vLLM makes, pair by pair."""
    slow, fast = runs["transformers"], runs["vllm"]
    return {size: paired_ratios(_seconds_per_token(slow[size]), _seconds_per_token(fast[size])) for size in slow}


def samples_per_second(runs: Mapping[EngineName, Mapping[int, Runs]]) -> dict[EngineName, dict[int, float]]:
    """Return the median rate of each engine by prompts of a call."""
    return {
        engine: {size: statistics.median(one.samples / s for s in one.seconds) for size, one in runs[engine].items()}
        for engine in ENGINES
    }


def tokens_per_second(runs: Mapping[EngineName, Mapping[int, Runs]]) -> dict[EngineName, dict[int, float]]:
    """Return the median rate of new tokens of each engine by prompts of a call."""
    return {
        engine: {size: statistics.median(token_rates(one)) for size, one in runs[engine].items()} for engine in ENGINES
    }


def token_rates(runs: Runs) -> list[float]:
    """Return the new tokens per second of each call."""
    return [tokens / seconds for tokens, seconds in zip(runs.new_tokens, runs.seconds, strict=True)]


def samples_to_break_even(result: EngineBenchResult) -> float | None:
    """Return after how many samples vLLM has made up for its slower first start, in calls of the largest size.

    Returns:
        At least 0; None where vLLM is not faster there, so that it never does.
    """
    size = max(result.ratios)
    rates = {engine: result.samples_per_second[engine][size] for engine in ENGINES}
    gained = 1 / rates["transformers"] - 1 / rates["vllm"]
    if gained <= 0:
        return None
    lost = result.startup_seconds["vllm"].first - result.startup_seconds["transformers"].first
    return max(0.0, lost / gained)


def _seconds_per_token(runs: Runs) -> list[float]:
    return [1 / rate for rate in token_rates(runs)]
