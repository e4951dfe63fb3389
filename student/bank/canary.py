"""The canary of every update: an adapter that is missing, does nothing or moved the base never counts as trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from student.adapters import Adapter
from student.bank.model import BankedModel
from student.bank.packing import lay_out, probe_line

_PROBE_LENGTH = 8
_NOISE = 8.0
"""Differences below this many units of rounding of the largest logit count as none."""


class Canary:
    """Compares adapters with the base on one short probe, in one forward pass for a whole group."""

    def __init__(self, student: BankedModel) -> None:
        """Remember the base's logits as they are now, before any training."""
        self._student = student
        self._probe = probe_line(student.model, _PROBE_LENGTH)
        self._reference = self._logits(1)

    def _logits(self, rows: int) -> Tensor:
        """Return the probe's logits (rows, T, V) with what is attached."""
        batch = lay_out([[self._probe]] * rows, self._student.device, packed=self._student.packed)
        with torch.inference_mode():
            return self._student.label_logits(batch).view(rows, _PROBE_LENGTH, -1)

    def base_problem(self) -> str:
        """Return what is wrong with the base, or an empty string when its logits are what they were at first."""
        now = self._logits(1)
        if torch.equal(now, self._reference):
            return ""
        moved = float((now - self._reference).abs().max())
        return f"the base's own logits moved by up to {moved:g} since the bank was opened; allowed is 0"

    def problems(self, adapters: Sequence[Adapter], initial: Sequence[Adapter | None]) -> list[str]:
        """Return for each of K adapters what is wrong with it, or an empty string.

        Each is compared with the base in the same batch, so that what differs does so by the factors alone, and with
        the adapter that it continued from (`initial`, None for a new one).
        """
        base = self.base_problem()
        with self._student.using([*adapters, None]):
            logits = self._logits(len(adapters) + 1)
        differences = (logits[:-1] - logits[-1]).abs().flatten(1).amax(1).tolist()
        noise = _NOISE * torch.finfo(logits.dtype).eps * float(logits[-1].abs().max())
        found = []
        for adapter, start, difference in zip(adapters, initial, differences, strict=True):
            if base:
                found.append(base)
            elif start is not None and start.digest == adapter.digest:
                found.append("the adapter has the digest of the one it continued from; training changed nothing")
            elif not difference > noise:  # A logit that is not a number fails here too.
                found.append(
                    f"logits differ from the base's by {difference:g}; a trained adapter gives more than {noise:g}"
                )
            else:
                found.append("")
        return found
