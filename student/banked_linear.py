"""A linear layer that K LoRA adapters share, and the layout of their factors in one flat tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evaluation.answers import has_direct_head, label_logits
from evaluation.errors import ModelError
from student.config import TargetModules


class _BankedProduct(torch.autograd.Function):
    """`x W^T + b + scale_k (x A_k^T) B_k` with gradients for x, A and B alone.

    Written by hand because W is frozen: the low-rank part is added in place, forward and backward, where autograd
    would keep one more tensor of the output's and one of the input's size.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scales: Tensor
    ) -> Tensor:
        reduced = torch.bmm(x, a.transpose(1, 2)).mul_(scales)
        ctx.save_for_backward(x, weight, a, b, scales, reduced)
        y = nn.functional.linear(x.flatten(0, 1), weight, bias).view(*x.shape[:2], -1)
        return y.baddbmm_(reduced, b)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, scales, reduced = ctx.saved_tensors
        d_reduced = torch.bmm(dy, b.transpose(1, 2)).mul_(scales)
        da = torch.bmm(d_reduced.transpose(1, 2), x)
        db = torch.bmm(reduced.transpose(1, 2), dy)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy.reshape(-1, dy.shape[-1]) @ weight).view_as(x).baddbmm_(d_reduced, a)
        return dx, None, None, da, db, None


class BankedLinear(nn.Module):
    """A frozen linear layer whose input rows are grouped by adapter; without factors it is the layer itself.

    Rows are grouped by slot: an input (K * N, T, D_in) is read as (K, N * T, D_in).
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self._plain = type(base) is nn.Linear
        self.a: Tensor | None = None
        """(K, R, D_in), or None when no adapters are attached."""
        self.b: Tensor | None = None
        """(K, R, D_out)."""
        self.scales: Tensor | None = None
        """(K, 1, 1): alpha / rank of each slot."""

    @property
    def weight(self) -> Tensor:
        """The frozen weight (D_out, D_in); some architectures look at their layers' weight."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias (D_out,) or None."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output of x's leading shape, with each slot's low-rank part added to its rows."""
        if self.a is None or self.b is None or self.scales is None:
            return self.base(x)  # type: ignore[no-any-return]
        grouped = x.reshape(self.a.shape[0], -1, x.shape[-1])
        if self._plain and grouped.dtype == self.a.dtype:
            y = _BankedProduct.apply(grouped, self.base.weight, self.base.bias, self.a, self.b, self.scales)
        else:  # A half-precision base, whose factors are float32 as in PEFT, or a quantised layer.
            reduced = torch.bmm(grouped.to(self.a.dtype), self.a.transpose(1, 2)) * self.scales
            base = self.base(grouped)
            y = (base + torch.bmm(reduced, self.b)).to(base.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])  # type: ignore[no-any-return]


class FactorShape(NamedTuple):
    """Sizes of one target layer."""

    d_in: int
    d_out: int


class FlatLayout:
    """Where the factors of each target layer stand in a slot's flat parameter vector of P numbers.

    All A's come first, then all B's, in the order of the names, so that one tensor (K, P) holds a bank: clipping and
    the optimizer are then a few operations over it, whatever the number of layers.
    """

    def __init__(self, shapes: Mapping[str, FactorShape], rank: int) -> None:
        """Lay out factors of `rank`, the largest in the bank; smaller ones leave the rest at zero."""
        self.shapes = dict(shapes)
        self.rank = rank
        sizes = list(self.shapes.values())
        self.sections = [rank * s.d_in for s in sizes] + [rank * s.d_out for s in sizes]
        self.size = sum(self.sections)

    def views(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return for each layer A (K, R, D_in) and B (K, R, D_out) as views of `flat` (K, P).

        One split serves all layers, so that autograd gathers their gradients in one concatenation.
        """
        parts = flat.split(self.sections, dim=1)
        n = len(self.shapes)
        shaped = [part.view(flat.shape[0], self.rank, -1) for part in parts]
        return {name: (shaped[i], shaped[n + i]) for i, name in enumerate(self.shapes)}


def find_targets(model: Any, target_modules: TargetModules) -> dict[str, nn.Linear]:
    """Return the linear layers that get factors, by name, in the model's order.

    Args:
        model: A Hugging Face causal language model.
        target_modules: `all-linear` (all but the output head, PEFT's meaning) or names or ends of names.

    Raises:
        ModelError: A name fits no linear layer.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if target_modules == "all-linear":
        head = model.get_output_embeddings()
        targets = {name: module for name, module in linears.items() if module is not head}
    else:
        ends = tuple(target_modules)
        missing = [end for end in ends if not any(_ends_with(name, end) for name in linears)]
        if missing:
            raise ModelError(
                f"student: no linear layer is named {missing} in {type(model).__name__}. "
                f"Allowed ends: {sorted({name.rpartition('.')[2] for name in linears})}. Change recipe.target_modules."
            )
        targets = {name: module for name, module in linears.items() if any(_ends_with(name, end) for end in ends)}
    if not targets:
        raise ModelError(f"student: {type(model).__name__} has no linear layer besides its output head.")
    return targets


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


class BankedModel:
    """A frozen causal language model whose target layers are `BankedLinear`, until `restore`."""

    def __init__(self, model: Any, target_modules: TargetModules) -> None:
        """Freeze the model, put it in evaluation mode and wrap its target layers.

        Raises:
            ModelError: As for `find_targets`.
        """
        targets = find_targets(model, target_modules)
        self.model = model
        self.shapes = {name: FactorShape(layer.in_features, layer.out_features) for name, layer in targets.items()}
        parameters = list(model.parameters())
        self.device: torch.device = parameters[0].device
        base_dtype = next(iter(targets.values())).weight.dtype
        self.dtype = torch.float32 if base_dtype in (torch.float16, torch.bfloat16) else base_dtype
        """Of the factors: float32 for a half-precision base, as in PEFT, else the base's own."""
        self._training = {module: module.training for module in model.modules()}
        self._requires_grad = [(parameter, parameter.requires_grad) for parameter in parameters]
        model.eval()
        model.requires_grad_(False)
        self.direct_head = has_direct_head(model)
        self._layers = {name: BankedLinear(layer) for name, layer in targets.items()}
        for name, layer in self._layers.items():
            _set_module(model, name, layer)

    def attach(self, views: Mapping[str, tuple[Tensor, Tensor]], scales: Tensor) -> None:
        """Use the factors `FlatLayout.views` gives, with alpha / rank of each slot (K, 1, 1)."""
        for name, layer in self._layers.items():
            (layer.a, layer.b), layer.scales = views[name], scales

    def detach(self) -> None:
        """Use no factors: the model computes what the base does."""
        for layer in self._layers.values():
            layer.a = layer.b = layer.scales = None

    def label_logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Return logits (L, V) at places of (K * N, T) rows grouped by slot; see `evaluation.answers.label_logits`."""
        return label_logits(self.model, input_ids, positions, direct_head=self.direct_head)

    def restore(self) -> None:
        """Put the original layers, their modes and gradient flags back."""
        for name, layer in self._layers.items():
            _set_module(self.model, name, layer.base)
        for parameter, flag in self._requires_grad:
            parameter.requires_grad_(flag)
        for module, training in self._training.items():
            module.training = training


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule at a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
