"""Hidden states below the lowest adapted block, which are the same whatever is adapted above it.

They are computed once for a sequence and put in wherever it is read again, so that those passes run the upper blocks
alone. Masks, positions and all else between blocks stay the business of the model's own forward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from student.bank.packing import BankBatch, LabelledTokens, lay_out, probe_line

if TYPE_CHECKING:
    from student.bank.model import BankedModel

_LENGTHS = (8, 5)
"""Tokens of the two sequences on which reuse is tried."""
_tried: WeakKeyDictionary[Any, dict[int, int]] = WeakKeyDictionary()
"""Of each model, by block: the bytes of a place's hidden states that enter it, or 0 where they cannot be put in."""


class _Reached(Exception):
    """Ends a pass at the lowest adapted block; carries the hidden states that enter it."""

    def __init__(self, states: Any) -> None:
        super().__init__()
        self.states = states


class _Pass:
    """What the blocks do in the pass that runs at the moment."""

    def __init__(self) -> None:
        self.first = 0
        """Lowest adapted block; 0 is a pass through the whole model."""
        self.states: Tensor | None = None
        """(N, T, D) that enter it; None where the pass is to find them."""


class _PassHere(_Pass, threading.local):
    """The same for each thread on its own."""


class LowerBlocks:
    """Runs a model's blocks up to the lowest adapted one, or in place of them puts in what came out before."""

    def __init__(self, student: BankedModel) -> None:
        """Change nothing yet; see `first_of`."""
        self._student = student
        self.enabled = True
        """False reuses nothing."""
        self._own: list[tuple[nn.Module, Any]] = []  # Blocks, each with a forward pass that was put into it before.
        self._tried = _tried.setdefault(student.model, {})  # every bank on a model would find the same
        self._returned: dict[int, int] = {}  # Of a block that returns a tuple: its length.
        # On a GPU the backward pass runs in a thread of its own, which computes checkpointed blocks again.
        self._pass = _PassHere() if student.device.type == "cpu" else _Pass()

    def first_of(self, layers: Collection[str]) -> int:
        """Return the lowest block with one of these adapted layers, or 0 where the blocks below cannot be left out.

        Decided by trying: some architectures give upper blocks more of the lower ones than hidden states.
        """
        blocks, first = _blocks_of(self._student.model, layers)
        if not first or not self.enabled:
            return 0
        if not self._own:
            self._own = [(block, vars(block).get("forward")) for block in blocks]
            for i, block in enumerate(blocks):
                vars(block)["forward"] = partial(self._forward, i, block.forward)
        if first not in self._tried:
            self._tried[first] = self._try(first)
        return first if self._tried[first] else 0

    def state_bytes(self, first: int) -> int:
        """Return the bytes of the hidden states that enter block `first` at one place; 0 for block 0."""
        return self._tried.get(first, 0)

    def remove(self) -> None:
        """Give the blocks their own forward pass back."""
        for block, own in self._own:
            del vars(block)["forward"]
            if own is not None:
                vars(block)["forward"] = own
        self._own = []

    def below(self, first: int, lines: Sequence[LabelledTokens]) -> list[Tensor]:
        """Return the hidden states (T, D) of each sequence that enter block `first`, without gradients.

        Raises:
            ValueError: What enters the block is not one vector for each token.
        """
        batch = lay_out([lines], self._student.device, packed=self._student.packed)
        with torch.no_grad(), self._passing(first, None):
            try:
                self._student.model(input_ids=batch.input_ids, use_cache=False, **batch.extra)
            except _Reached as reached:
                states = reached.states
            else:
                raise ValueError(f"reuse: the pass did not come to block {first}")
        if states.ndim != 3 or states.shape[:2] != batch.input_ids.shape:
            raise ValueError(f"reuse: block {first} is given {tuple(states.shape)}")
        return list(states.flatten(0, 1)[batch.filled].split([len(line.ids) for line in lines]))

    @contextmanager
    def _passing(self, first: int, states: Tensor | None) -> Iterator[None]:
        self._pass.first, self._pass.states = first, states
        try:
            yield
        finally:
            self._pass.first, self._pass.states = 0, None

    @contextmanager
    def left_out(self, first: int, batch: BankBatch, states: Sequence[Tensor]) -> Iterator[None]:
        """Let passes over `batch` begin at block `first` with the hidden states of each of its sequences."""
        rows = torch.cat(list(states))
        # Padding gets the numbers of a real place: any model can compute with them.
        whole = rows[:1].repeat(batch.input_ids.numel(), 1).index_copy_(0, batch.filled, rows)
        with self._passing(first, whole.view(*batch.input_ids.shape, -1)):
            yield

    def _forward(self, i: int, own: Callable[..., Any], *args: Any, **others: Any) -> Any:
        """Do what block number `i` does in the pass that runs."""
        first, states = self._pass.first, self._pass.states
        if not first or i > first:
            return own(*args, **others)
        if states is None:
            if i == first:
                raise _Reached(args[0] if args else others["hidden_states"])
            found = own(*args, **others)
            if isinstance(found, tuple):
                self._returned[i] = len(found)
            return found
        if i < first:
            length = self._returned.get(i)
            return states if length is None else (states, *[None] * (length - 1))
        return own(states, *args[1:], **others) if args else own(**{**others, "hidden_states": states})

    def _try(self, first: int) -> int:
        """Return the bytes of a place's hidden states, or 0 where logits differ or the model fails."""
        student = self._student
        lines = [[probe_line(student.model, length)] for length in _LENGTHS]
        batch = lay_out(lines, student.device, packed=student.packed)
        known = KnownStates(self, first)
        with torch.no_grad():
            whole = student.label_logits(batch)
            try:
                with known.used(lines, batch):
                    pass
                # What blocks may keep beside is that of other tokens now, as in any later pass.
                student.label_logits(batch._replace(input_ids=batch.input_ids.flip(1)))
                with known.used(lines, batch):
                    upper = student.label_logits(batch)
            except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, AssertionError):
                return 0
        tolerance = 1e-5 if whole.dtype in (torch.float32, torch.float64) else 0.05
        alike = bool((whole - upper).abs().max() <= tolerance * whole.abs().max())
        return known.bytes // sum(_LENGTHS) if alike else 0


class KnownStates:
    """Hidden states below the lowest adapted block, of each sequence that one thread has read so far."""

    def __init__(self, lower: LowerBlocks, first: int, most_bytes: int | None = None) -> None:
        """Know nothing yet; `first` 0 reuses nothing. Beyond `most_bytes` all is forgotten and computed anew."""
        self._lower, self._first, self._most_bytes = lower, first, most_bytes
        self._known: dict[bytes, Tensor] = {}

    @property
    def bytes(self) -> int:
        """What is held."""
        return sum(states.nbytes for states in self._known.values())

    @contextmanager
    def used(self, lines: Sequence[Sequence[LabelledTokens]], batch: BankBatch) -> Iterator[None]:
        """Let passes over `batch`, laid out from `lines`, run the upper blocks alone.

        Sequences that are new are read first, each once however often it occurs.
        """
        if not self._first:
            yield
            return
        if self._most_bytes is not None and self.bytes > self._most_bytes:
            self._known.clear()
        keyed = [(line.ids.tobytes(), line) for slot in lines for line in slot]
        if new := {key: line for key, line in keyed if key not in self._known}:
            self._known.update(zip(new, self._lower.below(self._first, list(new.values())), strict=True))
        with self._lower.left_out(self._first, batch, [self._known[key] for key, _ in keyed]):
            yield

    def forget(self, lines: Iterable[LabelledTokens]) -> None:
        """Drop sequences that are not read again; one that is after all is computed anew."""
        for line in lines:
            self._known.pop(line.ids.tobytes(), None)


def _blocks_of(model: Any, layers: Collection[str]) -> tuple[list[nn.Module], int]:
    """Return the blocks that hold all of these layers, and the lowest such block; none and 0 for layers elsewhere."""
    found: set[tuple[str, int]] = set()
    for name in layers:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        found.add(("", 0) if at is None else (".".join(parts[:at]), int(parts[at])))
    path, first = min(found, default=("", 0))
    blocks = model.get_submodule(path) if len({each for each, _ in found}) == 1 else None
    return (list(blocks), first) if isinstance(blocks, nn.ModuleList) else ([], 0)
