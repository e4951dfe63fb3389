"""What all engines in this process share when they write: where a completion ends, and what is drawn.

The noise of a row is a pure function of (seed, prompt, index, step, token): a counter-based hash (Salmon et al. 2011)
with the output function of SplitMix64 (Steele, Lea and Flood 2014), keyed by a SHA-256 of the first three. The argmax
of log-probabilities plus Gumbel noise is an exact sample (Gumbel-max trick; Maddison, Tarlow and Minka 2014, arXiv
1411.0030). So no random state is read or changed, and every batch size and device gives the same samples up to
rounding of the logits.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# SplitMix64's constants as signed integers, for torch's int64.
_GOLDEN, _MIX_1, _MIX_2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

Decode = Callable[[Sequence[int]], str]
"""Returns the text of tokens, without special ones."""


class Ended(NamedTuple):
    """A completion up to what ends it: an end token or a stop string, which are in its tokens alone."""

    tokens: tuple[int, ...]
    text: str
    reason: Literal["stop", "length"]


def up_to_end(tokens: Sequence[int], ends: Collection[int], stops: Collection[str], decode: Decode) -> Ended:
    """Return written tokens up to the first that ends them, or completes one of the stop strings."""
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    kept = tuple(tokens if end is None else tokens[: end + 1])
    text = decode(kept if end is None else kept[:-1])
    if found := [text.index(stop) for stop in stops if stop in text]:
        # The tokens that it takes are found by halving, as longer beginnings hold it too.
        counts = range(len(kept))
        least = bisect_left(counts, True, key=lambda count: any(stop in decode(kept[:count]) for stop in stops))
        return Ended(kept[:least], text[: min(found)], "stop")
    return Ended(kept, text, "length" if end is None else "stop")


def have_stopped(rows: Sequence[Sequence[int]], stops: Collection[str], decode: Decode) -> list[bool]:
    """Return which rows of written tokens have just completed a stop string."""
    if not stops:
        return [False] * len(rows)
    last = max(len(stop.encode()) for stop in stops) + 4  # a token is a byte at least, a character four
    tails = (decode(row[-last:]) for row in rows)
    return [any(stop in tail for stop in stops) for tail in tails]


def row_key(seed: int, prompt: str, index: int) -> int:
    """Return the RNG key (64 bits, signed) of one completion of a prompt."""
    content = f"{seed}\x00{index}\x00{prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)


def gumbel_noise(keys_N: Tensor, step: int, vocabulary: int, tokens: Tensor | None = None) -> Tensor:
    """Return independent standard Gumbel noise, float64, for token number `step` of rows with int64 RNG keys.

    It is (N, V), or (N, K) of the `tokens` (N, K) of a row alone.
    """
    import torch

    tokens = torch.arange(vocabulary, device=keys_N.device)[None, :] if tokens is None else tokens
    bits = keys_N[:, None] + (tokens + (step * vocabulary + 1)) * _GOLDEN
    bits = (bits ^ _shifted(bits, 30)).mul_(_MIX_1)
    bits = (bits ^ _shifted(bits, 27)).mul_(_MIX_2)
    bits ^= _shifted(bits, 31)
    # 52 bits plus a half are strictly between 0 and 1 in float64, so both logarithms are finite.
    uniform = _shifted(bits, 12).double().add_(0.5).mul_(2.0**-52)
    return uniform.log_().neg_().log_().neg_()


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Return a logical right shift; torch's is arithmetic."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
