"""Putting adapters together: the sum of several low-rank changes, as one adapter of a given rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluation.errors import UpdateError
from student.adapters import Adapter


def merge_adapters(adapters: Sequence[Adapter], rank: int, alpha: float) -> Adapter:
    """Return the adapter of some rank whose change of the weights is nearest to the sum of all changes.

    Exact while the ranks add up to no more than `rank`; beyond that the smallest singular values of the sum are left
    out, which is the nearest matrix of that rank in the Frobenius norm (Eckart and Young, 1936). The same as PEFT's
    `add_weighted_adapter` with `combination_type="svd"`, without ever forming a full matrix.

    Args:
        adapters: At least one, all of one base and of the same layers.
        rank: LoRA rank R of the result.
        alpha: Its scale, as in `UpdateRecipe.alpha`.

    Raises:
        UpdateError: They do not fit together.
    """
    first = adapters[0]
    for other in adapters[1:]:
        if set(other.factors) != set(first.factors) or other.base_digest != first.base_digest:
            raise UpdateError(
                f"merging: adapter {other.digest[:12]!r} has {len(other.factors)} layers on base "
                f"{other.base_digest[:12]!r}, {first.digest[:12]!r} has {len(first.factors)} on "
                f"{first.base_digest[:12]!r}. Give adapters of the same layers on the same base."
            )
    factors = {
        name: _nearest(
            torch.cat([adapter.factors[name][0] for adapter in adapters]),
            torch.cat([adapter.alpha / adapter.rank * adapter.factors[name][1] for adapter in adapters], dim=1),
            rank,
            alpha / rank,
        )
        for name in first.factors
    }
    return Adapter(factors, rank, alpha, first.base_digest)


def _nearest(a: Tensor, b: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return factors of `rank` whose product times `scale` is nearest to `b @ a`.

    Args:
        a: (P, D_in), the factors of all adapters below one another.
        b: (D_out, P), those beside one another, scaled.
        rank: Of the result; missing ranks are zero.
        scale: Of the result.
    """
    left, right = torch.linalg.qr(b.double()), torch.linalg.qr(a.double().T)
    u, values, vh = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    kept = min(rank, len(values))
    root = (values[:kept] / scale).sqrt()
    down = torch.zeros(rank, a.shape[1], dtype=torch.float64)
    up = torch.zeros(b.shape[0], rank, dtype=torch.float64)
    down[:kept] = root[:, None] * (vh[:kept] @ right.Q.T)
    up[:, :kept] = (left.Q @ u[:, :kept]) * root
    return down.to(a.dtype), up.to(b.dtype)
