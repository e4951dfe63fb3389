"""All settings of the shipped configuration files: `preceptor config reference`, kept in docs/configuration.md."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from evaluation.common.data import models_in

Schemas = Mapping[str, type[BaseModel]]
"""Schemas of files by the command that reads them."""
TAGS = ("type", "algorithm")
"""Fields that select the kind of a section."""
_INTRO = """\
# Configuration

{} settings, as `preceptor config reference` prints them. A key that is not listed is refused. A section that comes in
several kinds has a table for each. `configs/` holds a complete file for each setup; `--set loop.rounds=3` overrides one
setting on the command line.
"""
_TYPES = {NoneType: "none", bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def sections(schemas: Schemas) -> dict[type[BaseModel], list[str]]:
    """Return each model of the schemas with the keys under which it occurs; of a whole file its command."""
    found: dict[type[BaseModel], list[str]] = {}

    def visit(model: type[BaseModel], key: str, prefix: str = "") -> None:
        keys = found.setdefault(model, [])
        keys += [key] if key not in keys else []
        for name, field in model.model_fields.items():
            for each in models_in(field.annotation):
                visit(each, prefix + name, f"{prefix}{name}.")

    for command, schema in schemas.items():
        visit(schema, command)
    return found


def settings(schemas: Schemas) -> dict[tuple[str, str], tuple[FieldInfo, str]]:
    """Return field and docstring of each setting by the class that defines it and its name; inherited ones count once.

    A setting holds a value: sections, the fields that select their kind, and pins, which a command writes, are none.
    """
    return {
        (_definitions(model, name)[-1].__name__, name): (field, docstring(model, name))
        for model, keys in sections(schemas).items()
        for name, field in model.model_fields.items()
        if not any(models_in(field.annotation)) and name not in TAGS and keys != ["pins"]
    }


def docstring(model: type[BaseModel], name: str) -> str:
    """Return the docstring of a field, or else of the field that it overrides or the section that it holds."""
    for base in _definitions(model, name):
        (found,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(found, ast.ClassDef)
        for field, text in zip(found.body, found.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == name and isinstance(text, ast.Expr):
                return " ".join(str(ast.literal_eval(text.value)).split())
    held = list(models_in(model.model_fields[name].annotation))
    return " ".join((inspect.getdoc(held[0]) or "").partition("\n\n")[0].split()) if len(held) == 1 else ""


def _definitions(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    return [base for base in model.__mro__ if name in inspect.get_annotations(base)]


def reference(schemas: Schemas) -> str:
    """Return the page in Markdown: a table for each section, with the type, default and range of each field."""
    page = [_INTRO.format(len(settings(schemas)))]
    for model, keys in sections(schemas).items():
        tags = {tag: get_args(model.model_fields[tag].annotation)[0] for tag in TAGS if tag in model.model_fields}
        kind = "".join(f" of `{tag}: {value}`" for tag, value in tags.items())
        page += [f"## {', '.join(f'`{key}`' for key in keys)}{kind}\n\n{inspect.getdoc(model)}\n"]
        rows = [_cells(model, name, field) for name, field in model.model_fields.items() if name not in TAGS]
        page += ["| field | type | default | range | meaning |\n|---|---|---|---|---|"] if rows else []
        page += [f"| {' | '.join(row)} |" for row in rows] + [""]
    return "\n".join(page)


def _cells(model: type[BaseModel], name: str, field: FieldInfo) -> tuple[str, ...]:
    bounds = [text.format(getattr(m, key)) for m in field.metadata for key, text in _BOUNDS.items() if hasattr(m, key)]
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    default = "its own" if value is not None and any(models_in(field.annotation)) else f"`{json.dumps(value)}`"
    default = "required" if field.is_required() else default
    return f"`{name}`", _type(field.annotation), default, ", ".join(bounds), docstring(model, name)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if next(models_in(annotation), None) is not None:
        return "list of sections" if origin is tuple else "section"
    if origin in (Union, UnionType):
        return " or ".join(map(_type, arguments))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (tuple, dict):
        return f"{'list' if origin is tuple else 'mapping'}, {_type(arguments[0 if origin is tuple else 1])}"
    return _type(arguments[0]) if origin is Annotated else _TYPES.get(annotation, "any")
