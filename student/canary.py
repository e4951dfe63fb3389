"""The canary of every update: an adapter that is not there, does nothing or moved the base never counts as trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from student.adapters import Adapter
from student.banked_model import BankedModel
from student.batching import Line, lay_out

_PROBE_LENGTH = 8
_NOISE = 8.0
"""Differences below this many units of rounding of the largest logit count as none."""


class Canary:
    """Compares adapters with the base on one short probe, in one forward pass for a whole group."""

    def __init__(self, student: BankedModel) -> None:
        """Remember the base's logits as they are now, before any training."""
        self._student = student
        vocabulary = student.model.get_input_embeddings().weight.shape[0]
        # A stride that is coprime to most vocabulary sizes spreads the probe over the vocabulary.
        ids = np.arange(1, _PROBE_LENGTH + 1, dtype=np.int64) * 7919 % vocabulary
        self._probe = Line(ids, ids)
        self._reference = self._base_logits()

    def _logits(self, rows: int) -> Tensor:
        """Return the probe's logits (rows, T, V) with what is attached."""
        batch = lay_out([[self._probe]] * rows, self._student.device, packed=self._student.packed)
        with torch.inference_mode():
            return self._student.label_logits(batch).view(rows, _PROBE_LENGTH, -1)

    def _base_logits(self) -> Tensor:
        self._student.detach()
        return self._logits(1)[0]

    def base_problem(self) -> str:
        """Return what is wrong with the base, or an empty string when its logits are what they were at first."""
        now = self._base_logits()
        if torch.equal(now, self._reference):
            return ""
        moved = float((now - self._reference).abs().max())
        return f"the base's own logits moved by up to {moved:g} since the bank was opened; allowed is 0"

    def problems(
        self,
        views: Mapping[str, tuple[Tensor, Tensor]],
        scales: Sequence[float],
        adapters: Sequence[Adapter],
        initial: Sequence[Adapter | None],
    ) -> list[str]:
        """Return for each of K adapters what is wrong with it, or an empty string.

        Args:
            views: Factors of K + 1 slots, those of the last all zero: the base in the same batch, so that what differs
                from it does so by the factors alone.
            scales: alpha / rank of each of the K + 1 slots.
            adapters: K adapters as they leave the bank.
            initial: For each the adapter that it continued from, or None.
        """
        base = self.base_problem()
        self._student.attach(views, scales)
        try:
            logits = self._logits(len(adapters) + 1)
        finally:
            self._student.detach()
        differences = (logits[:-1] - logits[-1]).abs().flatten(1).amax(1).tolist()
        noise = _NOISE * torch.finfo(logits.dtype).eps * float(logits[-1].abs().max())
        found = []
        for adapter, start, difference in zip(adapters, initial, differences, strict=True):
            if base:
                found.append(base)
            elif len(adapter.digest) != 64 or (start is not None and start.digest == adapter.digest):
                found.append("the adapter has the digest of the one it continued from; training changed nothing")
            elif not difference > noise:  # A logit that is not a number fails here too.
                found.append(
                    f"logits differ from the base's by {difference:g}; a trained adapter gives more than {noise:g}"
                )
            else:
                found.append("")
        return found
