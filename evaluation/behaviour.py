"""Behaviour in words: calls of tools on one line, and how far a text does what a gold answer in such a form does.

A procedure is written `find_order(order), then refund(order, amount)`: tools in their order, each with the names of its
arguments. Values are no part of it, since they belong to one situation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

THEN = ", then "
"""Stands between two calls of a procedure."""
_NAME = r"[A-Za-z_][\w.-]{0,63}"
_CALL = re.compile(rf"(?<![\w.-])({_NAME})\(([^()]*)\)")
_PROCEDURE = re.compile(rf"{_NAME}\([^()]*\)(?:{THEN}{_NAME}\([^()]*\))*")
_NAMED = re.compile(rf"({_NAME})\s*[=:]")
"""The name of an argument that is given with its value."""


class Call(NamedTuple):
    """A call of a tool, without the values of its arguments."""

    tool: str
    arguments: frozenset[str] = frozenset()


def call_of(tool: str, arguments: Collection[str]) -> Call | None:
    """Return a call; None if a name is none, such as a sentence: names come from whoever made the transcript."""
    named = all(re.fullmatch(_NAME, name) for name in (tool, *arguments))
    return Call(tool, frozenset(arguments)) if named else None


def procedure_text(calls: Sequence[Call]) -> str:
    """Return calls in their order on one line, the names of arguments sorted."""
    return THEN.join(f"{call.tool}({', '.join(sorted(call.arguments))})" for call in calls)


def calls_in(text: str) -> list[Call]:
    """Return the calls in a text in their order, with or without values of arguments, whatever stands around them."""
    return [Call(tool, _names(inside)) for tool, inside in _CALL.findall(text)]


def _names(inside: str) -> frozenset[str]:
    named = _NAMED.findall(inside) or [part.strip() for part in inside.split(",")]
    return frozenset(name for name in named if name)


def form_match(answer: str, text: str) -> float | None:
    """Return how far a text has the form and content of a gold answer, in [0, 1]; None for a gold answer in words.

    A gold procedure is graded by `procedure_match`; gold JSON, an object or a list, is 1 if the text is JSON of the
    same content, else 0.
    """
    if _PROCEDURE.fullmatch(answer.strip()):
        return procedure_match(calls_in(answer), calls_in(text))
    wanted = _json(answer)
    return float(_json(text) == wanted) if isinstance(wanted, dict | list) else None


def procedure_match(wanted: Sequence[Call], given: Sequence[Call]) -> float:
    """Return how far calls are the wanted ones, in [0, 1].

    It is the largest sum, over tools called in the wanted order, of the share of argument names that both calls have,
    divided by the number of calls of the longer side: a tool too many costs as much as one too few.
    """
    row = [0.0] * (len(given) + 1)
    for one in wanted:
        before, row = row, [0.0]
        for i, other in enumerate(given):
            row.append(max(row[i], before[i + 1], before[i] + _alike(one, other)))
    longest = max(len(wanted), len(given))
    return row[-1] / longest if longest else 1.0


def _alike(one: Call, other: Call) -> float:
    if one.tool != other.tool:
        return 0.0
    names = one.arguments | other.arguments
    return len(one.arguments & other.arguments) / len(names) if names else 1.0


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
