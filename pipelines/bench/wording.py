"""How benchmarks put their figures: three digits that count, ratios with their spread, sentences at 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from pipelines.bench.common import Spread
from pipelines.report import WIDTH


def bulleted(sentences: Iterator[str]) -> list[str]:
    """Return sentences as points, in lines of at most 80 columns, longer only where one word is longer."""
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(
            sentence, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False
        )
    ]


def times(ratio: Spread) -> str:
    """Return a ratio in words, with the lowest and the highest in brackets."""
    return f"{three_digits(ratio.median)} times [{three_digits(ratio.low)}, {three_digits(ratio.high)}]"


def three_digits(value: float) -> str:
    """Return a positive figure with three digits that count, never in powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"
