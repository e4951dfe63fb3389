"""Plain data: frozen models, content digests, and seeds derived from them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails


class Frozen(BaseModel):
    """An immutable model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraShape(Frozen):
    """Size of a LoRA adapter (arXiv 2106.09685)."""

    rank: int = Field(ge=1, le=256)
    """LoRA rank R, in [1, 256]."""
    alpha: float = Field(gt=0.0, le=4096.0)
    """LoRA scale: the product of the factors is multiplied by alpha / rank; in (0, 4096]."""


def any_of(namespace: Mapping[str, object], base: type[BaseModel], tag: str) -> Any:
    """Return the discriminated union, by `tag`, of the proper subclasses of `base` in a module's namespace."""
    kinds = [kind for kind in namespace.values() if isinstance(kind, type) and issubclass(kind, base)]
    return Annotated[Union[tuple(kind for kind in kinds if kind is not base)], Field(discriminator=tag)]  # noqa: UP007


def digest_json(value: Any) -> str:
    """Return the SHA-256 (64 hex digits) of plain JSON in canonical form: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_files(directory: Path, patterns: Iterable[str] = ("*",)) -> str:
    """Return the SHA-256 of the files directly under `directory` that match any of `patterns`, names included."""
    names = sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})
    whole = hashlib.sha256()
    for path in names:
        whole.update(path.name.encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def derive_seed(*parts: str | int) -> int:
    """Return a seed in [0, 2^31) that is a deterministic function of the parts."""
    return int(digest_json([*parts])[:15], 16) % 2**31


_SHOULD = re.compile(r"^(?:Input|String|List|Tuple|Dictionary|Set) should ")
_SAME_NAMES: Mapping[str, str] = MappingProxyType({})
_TO_NAME = 16
"""Allowed keys that a message names at most."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the nearest of some words, compared whole and by their last dotted part."""
    known = list(dict.fromkeys(words))
    near = [each for each in known if each.rpartition(".")[2] == word][:3]
    near = near or get_close_matches(word, known, n=1, cutoff=0.7)
    if not near:
        ends = get_close_matches(word, [each.rpartition(".")[2] for each in known], n=1, cutoff=0.8)
        near = [each for each in known if each.rpartition(".")[2] in ends][:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def dotted_keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a schema, sections included."""
    for name, field in kind.model_fields.items():
        yield prefix + name
        for each in models_in(field.annotation):
            yield from dotted_keys(each, f"{prefix}{name}.")


def sections_at(kind: type[BaseModel], location: Sequence[int | str]) -> tuple[list[type[BaseModel]], list[int | str]]:
    """Return the models that may stand at a location of an error, and the location without the tags of unions."""
    models, path = [kind], list[int | str]()
    for part in location:
        if len(models) > 1 and (tagged := [model for model in models if part in _tags(model)]):
            models = tagged
            continue
        path.append(part)
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [each for field in fields for each in models_in(field.annotation)]
    return models, path


def _tags(model: type[BaseModel]) -> set[object]:
    fields = (field.annotation for field in model.model_fields.values())
    return {value for each in fields if get_origin(each) is Literal for value in get_args(each)}


def reason(
    details: ErrorDetails,
    kind: type[BaseModel] | None,
    names: Mapping[str, str] = _SAME_NAMES,
    near: Iterable[str] = (),
) -> str:
    """Return what is wrong, to follow the place where it is.

    `kind` is the schema, without which no allowed keys are named; `names` has what the user calls some fields, and
    `near` further keys that an unknown one may be a slip for.
    """
    if details["type"] == "missing":
        return " is missing"
    if details["type"] != "extra_forbidden":
        own = details.get("ctx", {}).get("error")
        text = str(own) if own else _SHOULD.sub("must ", details["msg"])
        return f" {text}" if own or text.startswith("must ") else f": {text}"
    *parents, key = details["loc"]
    models = [] if kind is None else sections_at(kind, parents)[0]
    allowed = list(dict.fromkeys(names.get(name, name) for model in models for name in model.model_fields))
    listed = [*allowed[:_TO_NAME], *(["..."] if len(allowed) > _TO_NAME else [])]
    hint = did_you_mean(str(key), allowed) or did_you_mean(str(key), near)
    return f" is an unknown key{hint}" + (f" (allowed: {', '.join(listed)})" if listed else "")


def grouped(reasons: Iterable[tuple[str, str]], most: int = 5) -> list[tuple[str, str]]:
    """Return (places, reason) with the places of each reason together, `most` of them named and the others counted.

    Places are keys, or a word and a number, such as `line 3`: together `lines 3, 7 and 12 more`.
    """
    places: dict[str, list[str]] = {}
    for place, text in reasons:
        places.setdefault(text, []).append(place)

    def joined(found: list[str]) -> str:
        word, space, _ = found[0].partition(" ")
        shown = ", ".join(each.removeprefix(word + space) if space else each for each in found[:most])
        more = f" and {len(found) - most} more" if len(found) > most else ""
        return found[0] if len(found) == 1 else f"{word}s {shown}{more}" if space else shown + more

    return [(joined(found), text) for text, found in places.items()]
