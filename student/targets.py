"""Which layers of a student get factors: by name and by depth. Pure functions on names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from student.config import WHOLE_DEPTH, TargetModules


def select_layers(names: Sequence[str], target_modules: TargetModules, depth: tuple[float, float]) -> list[str]:
    """Return the layers that get factors, in the order given.

    Args:
        names: Of a model's linear layers, such as `model.layers.3.mlp.up_proj`.
        target_modules: `all-linear` (all of them) or names or ends of names.
        depth: See `UpdateRecipe.depth`; a layer outside of any block is meant only where the whole depth is.
    """
    blocks = {name: _block(name) for name in names}
    count = 1 + max((block for block in blocks.values() if block is not None), default=0)

    def is_within(block: int | None) -> bool:
        return depth == WHOLE_DEPTH if block is None else depth[0] <= (block + 0.5) / count <= depth[1]

    named = names if target_modules == "all-linear" else [n for n in names if _fits_any(n, target_modules)]
    return [name for name in named if is_within(blocks[name])]


def unknown_names(names: Iterable[str], target_modules: TargetModules) -> list[str]:
    """Return the names or ends that fit no layer."""
    known = list(names)
    ends = () if target_modules == "all-linear" else target_modules
    return [end for end in ends if not any(_fits_any(name, (end,)) for name in known)]


def _fits_any(name: str, ends: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _block(name: str) -> int | None:
    """Return the number of the block that a layer is in; None outside of any."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
