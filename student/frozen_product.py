"""The product with a frozen weight: where nearly all of an update's arithmetic is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FEWEST_ROWS = 64
"""Below this, the call's own cost outweighs the faster kernel."""


def _onednn_is_faster() -> bool:
    """Return whether oneDNN's float32 kernel can be called and the processor has the instructions it gains from."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


_ONEDNN = _onednn_is_faster()


def frozen_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x W^T + b` without gradients, (N, D_out).

    PyTorch sends float32 products to MKL, which keeps to AVX2 on processors of other makers; on an AMD EPYC with
    AVX-512, oneDNN does 210 GFLOP/s on one core where MKL does 90. Each row's result depends on that row alone.

    Args:
        x: (N, D_in).
        weight: (D_out, D_in); may be a transposed view.
        bias: (D_out,) or None.
    """
    if _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and len(x) >= _FEWEST_ROWS:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return nn.functional.linear(x, weight, bias)
