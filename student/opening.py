"""What training, scoring and saving take for granted about a model, tried once on a few tokens when it is opened.

A problem is a `ModelError` that continues "the model": what was found, what is allowed, what to do next. Of a model on
the device `meta` vocabulary and layers are checked. Nothing of a model or the global random generators is changed.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.common.checkpoints import Checkpoint, towers
from evaluation.common.errors import ModelError
from student.adapters import Adapter, load_adapter, save_adapter
from student.bank.layers import FactorShape, FlatLayout, unstack
from student.bank.model import BankedModel, find_targets
from student.bank.packing import lay_out, probe_line
from student.config import WHOLE_DEPTH, TargetModules

_LENGTHS = (5, 9, 7)
"""Tokens of the prompts on which logits are compared."""
_RANK, _SPREAD = 2, 0.03
"""Of the random adapter: large enough to show in logits, small enough not to amplify roundings."""


def check_model(
    checkpoint: Checkpoint,
    target_modules: TargetModules = "all-linear",
    depth: tuple[float, float] = WHOLE_DEPTH,
    *,
    banked: bool = True,
) -> str:
    """Refuse a model whose trained adapters would be another one in PEFT; return what `all-linear` leaves frozen.

    `banked` is a student, of which a bank trains linear layers alone; a teacher is trained by PEFT itself.
    """
    check_behaviour(checkpoint)
    model = checkpoint.model
    frozen = _check_layers(model, target_modules, depth, banked=banked)
    if model.device.type == "meta" or not banked:
        return frozen
    shapes = {name: FactorShape.of(each) for name, each in find_targets(model, target_modules, depth).items()}
    layout = FlatLayout(shapes, _RANK)
    flat = _SPREAD * torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
    adapter = Adapter(unstack(layout, flat, _RANK, list(shapes)), _RANK, float(_RANK), base_digest="")
    with tempfile.TemporaryDirectory(prefix="preceptor-opening-") as scratch:
        prove_adapter(model, save_adapter(adapter, Path(scratch) / "adapter"))
    return frozen


def check_behaviour(checkpoint: Checkpoint) -> None:
    """Refuse a model that sees later tokens, answers otherwise in a batch, or has another model's tokenizer."""
    model, tokenizer = checkpoint
    rows = model.get_input_embeddings().weight.shape[0]
    special = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    if (top := max([tokenizer.vocab_size - 1, *special])) >= rows:
        raise ModelError(f"embeds {rows} tokens, but its tokenizer has ids up to {top}; save the model's own tokenizer")
    if model.device.type == "meta":
        return
    ids = torch.from_numpy(probe_line(model, max(_LENGTHS)).ids)[None].to(model.device)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % rows
    try:
        with torch.inference_mode():
            ahead = _difference(_logits(model, ids)[:-1], _logits(model, changed)[:-1])
        padded = _padding_difference(model, tokenizer, ids)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ModelError(f"fails on a prompt of {max(_LENGTHS)} tokens ({reason}); use another model") from error
    moved = {"is not causal: another last token": ahead, "heeds no attention mask: padding on the left": padded}
    for what, share in moved.items():
        if not share <= _tolerance(model):  # a logit that is not a number fails here too
            raise ModelError(
                f"{what} moves the logits of other tokens by {share:.1%} of the largest one, allowed are "
                f"{_tolerance(model):.2%}; use another model (…ForCausalLM)"
            )


def _padding_difference(model: Any, tokenizer: Any, ids: Tensor) -> float:
    """Return by how much the logits of two greedy tokens differ between a padded prompt in a batch and it alone."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    short, gap = ids[:, : min(_LENGTHS)], ids.shape[1] - min(_LENGTHS)
    rows = torch.cat([torch.cat([torch.full_like(ids[:, :gap], pad), short], dim=1), ids])
    mask = torch.ones_like(rows)
    mask[0, :gap] = 0
    greedy = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "num_beams": 1, "pad_token_id": pad}
    shown = {"output_logits": True, "return_dict_in_generate": True}
    written = model.generate(input_ids=rows, attention_mask=mask, **greedy, **shown)
    with torch.inference_mode():
        alone = _logits(model, torch.cat([short, written.sequences[:1, -2:-1]], dim=1))[-2:]
    return _difference(torch.stack([step[0] for step in written.logits]), alone)


def _check_layers(model: Any, target_modules: TargetModules, depth: tuple[float, float], *, banked: bool) -> str:
    """Refuse layers that PEFT does not adapt as they are, naming those that it does; return what stays frozen."""
    found, every = list(find_targets(model, target_modules, depth)), target_modules == "all-linear"
    adapted, problem = _adapted_by_peft(model, "all-linear") if every else (set(found), "")
    if banked and not problem:
        problem = _other_layers(adapted, list(find_targets(model, "all-linear"))) if every else ""
        got, refusal = _adapted_by_peft(model, found)
        problem = problem or refusal or _other_layers(got, found)
    if problem:
        ends = {end: {name for name in found if name.rpartition(".")[2] == end} for end in _ends(found)}
        able = ", ".join(end for end, names in ends.items() if _adapted_by_peft(model, names)[0] == names)
        advice = f"set target_modules to some of [{able}]" if banked else f"use another model (only {able} will do)"
        raise ModelError(f"{problem}; {advice}")
    if not every:
        return ""
    weights = {name.rpartition(".")[0] for name, weight in model.named_parameters() if weight.ndim == 3}
    stacked, others = sorted(name for name in weights - adapted if "expert" in name), towers(model)
    told = [f"{len(stacked)} stacks of experts ({stacked[0]} ...)"] if stacked else []
    told += [f"{len(others)} layers for images or sound ({others[0]} ...)"] if others else []
    return f"all-linear, the linear layers of its text part, leaves frozen: {', '.join(told)}" if told else ""


def _adapted_by_peft(model: Any, targets: Collection[str] | str) -> tuple[set[str], str]:
    """Return the names of what PEFT adapts, layers and modules of which it adapts parameters, or why it refuses."""
    from peft import LoraConfig, get_peft_model

    chosen, others = targets if isinstance(targets, str) else sorted(targets), list(towers(model)) or None
    config = LoraConfig(task_type="CAUSAL_LM", r=_RANK, target_modules=chosen, exclude_modules=others)
    try:
        with _restoring(model):
            return set(_layers(get_peft_model(model, config, low_cpu_mem_usage=True))), ""
    except (ValueError, NotImplementedError) as error:
        reason = str(error).partition(". ")[0].rpartition("] ")[2]
        return set(), f"has layers that PEFT does not adapt ({reason})"


def _other_layers(got: Collection[str], expected: Sequence[str]) -> str:
    """Return how what PEFT adapts differs from what a bank trains; empty if it does not."""
    lost, added = [name for name in expected if name not in got], set(got) - set(expected)
    told = [f"{len(lost)} of its {len(expected)} layers are left out ({', '.join(_ends(lost))})"] if lost else []
    told += [f"{len(added)} others are added, which a bank cannot train ({', '.join(_ends(added))})"] if added else []
    return f"is another model in PEFT: {' and '.join(told)}" if told else ""


def _ends(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def prove_adapter(model: Any, directory: Path) -> None:
    """Refuse a saved adapter unless PEFT opens it with the same layers and factors, and gives the bank's logits.

    On a few prompts, logits may differ by 1e-4 of the largest one, with a base in half precision by 0.05.
    """
    from peft import PeftModel

    adapter, lines = load_adapter(directory), [probe_line(model, length) for length in _LENGTHS]
    student = BankedModel(model, tuple(adapter.factors))
    try:
        batch = lay_out([lines], student.device, packed=student.packed)
        with student.using([adapter]), torch.inference_mode():
            ours = student.label_logits(batch)
    finally:
        student.restore()
    with _restoring(model):
        try:
            opened = PeftModel.from_pretrained(model, str(directory)).eval()
        except (ValueError, RuntimeError, KeyError) as error:
            raise ModelError(f"cannot be opened by PEFT with its adapter: {error}") from error
        layers = _layers(opened)
        if problem := _other_layers(layers, list(adapter.factors)):
            raise ModelError(problem)
        for name, factors in adapter.factors.items():
            parts = layers[name].lora_A["default"].weight, layers[name].lora_B["default"].weight
            if not all(torch.equal(a.detach().cpu().to(b.dtype), b) for a, b in zip(parts, factors, strict=True)):
                raise ModelError(f"is another model in PEFT: the factors of {name} are not those that were trained")
        with torch.inference_mode():
            rows = [torch.from_numpy(line.ids)[None].to(student.device) for line in lines]
            apart = _difference(ours, torch.cat([_logits(opened, row) for row in rows]))
    if not apart <= _tolerance(model):
        limit = f"{apart:.2%} of the largest one, allowed are {_tolerance(model):.2%}"
        raise ModelError(f"is another model in PEFT: logits differ by {limit}; set target_modules to fewer layers")


def _logits(model: Any, ids: Tensor) -> Tensor:
    """Return the logits (T, V) of one row of tokens (1, T)."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


def _difference(left: Tensor, right: Tensor) -> float:
    return float((left.float() - right.float()).abs().max() / left.float().abs().max().clamp(min=1e-30))


def _tolerance(model: Any) -> float:
    """Return the largest difference of logits that should be equal, as a share of the largest one."""
    return 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.05


def _layers(opened: Any) -> dict[str, Any]:
    """Return the layers and modules that PEFT adapts in a model that it wraps, by their names in the base."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {name: module for name, module in opened.named_modules() if isinstance(module, BaseTunerLayer)}
    return {name.removeprefix("base_model.model.").removesuffix(".base_layer"): each for name, each in found.items()}


@contextmanager
def _restoring(model: Any) -> Iterator[None]:
    """Put back whatever PEFT replaces in a model, even where it stops halfway, and the global random generators."""
    modules, had_config = dict(model.named_modules()), hasattr(model, "peft_config")
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in modules.values()]
    try:
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, module in modules.items():
            if name and model.get_submodule(name) is not module:
                model.set_submodule(name, module)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
        if not had_config and hasattr(model, "peft_config"):
            del model.peft_config
