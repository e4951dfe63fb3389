"""Which elements of a web page are not read, and why: navigation, what nobody sees, what is struck through."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

_BY_NAME = dict.fromkeys(("del", "s", "strike"), "struck through") | {"nav": "of navigation"}
_BY_NAME |= dict.fromkeys(("select", "textarea"), "of form fields")
_BY_NAME |= dict.fromkeys(("svg", "iframe", "object", "video", "audio", "canvas", "noscript"), "embedded")
_ROLES = frozenset({"navigation", "search", "menu", "menubar", "contentinfo"})
_NAVIGATION = frozenset(
    {"mw-editsection", "mw-jump-link", "navbox", "noprint", "printfooter", "catlinks", "toc", "vector-menu", "p-lang"}
    | {"vector-toc", "interlanguage-link", "mw-interlanguage-selector", "p-lang-btn", "mw-portlet", "siteNotice"}
    | {"breadcrumb", "breadcrumbs"}
)
"""Classes and ids: those of MediaWiki, and common ones."""
_ZERO = r"0(?:\.0+)?(?:px|pt|r?em|%)?(?=[;!]|\Z)"
_HIDES = re.compile(
    rf"(?:\A|;)(?:display:none|visibility:(?:hidden|collapse)|(?:opacity|font-size):{_ZERO}|transform:scale\(0\)|"
    r"(?:left|top|right|text-indent):-(?:\d{4,}px|\d{3,}(?:r?em|v[wh]|%))|clip:rect\([01]|clip-path:inset\((?:50|100)%)"
)
_SHOWS = re.compile(r"(?:\A|;)(?:display:(?!none)|visibility:visible)")
_STRIKES = re.compile(r"(?:\A|;)text-decoration(?:-line)?:[^;]*line-through")
_SIMPLE = re.compile(r"[a-z][a-z0-9]*|[a-z0-9]*[.#][\w-]+")


def _compact(style: str) -> str:
    return "".join(style.lower().split())


def hiding_selectors(sheets: Iterable[str]) -> frozenset[str]:
    """Return the simple selectors (a name, class or id) by which style sheets hide elements on every medium."""
    found: set[str] = set()
    for sheet in sheets:
        css = re.sub(r"/\*.*?(?:\*/|\Z)", "", sheet, flags=re.DOTALL)
        depth = start = inner = 0
        for brace in re.finditer("[{}]", css):
            if brace[0] == "{":
                inner = brace.end() if depth == 0 else inner
                depth += 1
            elif depth == 1:
                names = css[start : inner - 1].rpartition(";")[2]
                selectors = {name.strip() for name in names.split(",") if _SIMPLE.fullmatch(name.strip())}
                rules = _compact(css[inner : brace.start()])
                found = found | selectors if _HIDES.search(rules) else found
                found = found - selectors if _SHOWS.search(rules) else found
                depth, start = 0, brace.end()
            else:
                depth = max(0, depth - 1)
    return frozenset(found - {"html", "body"})


class Visibility:
    """What of a page is not read."""

    def __init__(self, tree: LexborHTMLParser) -> None:
        self._body = tree.body
        self._hiding = hiding_selectors(node.text() for node in tree.css("style"))
        self._controlled = {node.attributes["aria-controls"] for node in tree.css("[aria-controls]")}

    def left_out(self, node: LexborNode) -> str:
        """Return why an element is not read; empty if it is."""
        name, attributes = node.tag or "", node.attributes
        called = {attributes.get("id") or "", *(attributes.get("class") or "").split()}
        style = _compact(attributes.get("style") or "")
        if kind := _BY_NAME.get(name):
            return kind
        if attributes.get("role") in _ROLES or called & _NAVIGATION or (name == "footer" and not _in_article(node)):
            return "of navigation"
        if name == "button" and attributes.get("type") in ("submit", "reset"):
            return "of form fields"
        if _STRIKES.search(style):
            return "struck through"
        styled = bool(self._hiding) and any(
            mark in self._hiding or name + mark in self._hiding
            for mark in ("", f"#{attributes.get('id')}", *(f".{each}" for each in called))
        )
        hidden = "hidden" in attributes and attributes["hidden"] != "until-found"
        closed = name == "dialog" and "open" not in attributes
        if (hidden or closed or styled or _HIDES.search(style)) and not self._behind_click(node, styled):
            return "hidden"
        return "hidden" if attributes.get("aria-hidden") == "true" and not self._holds_most(node) else ""

    def _behind_click(self, node: LexborNode, styled: bool) -> bool:
        """Return whether a click on the page shows a hidden element, as in tabs and accordions."""
        before = node.prev
        while before is not None and not before.is_element_node:
            before = before.prev
        if node.attributes.get("role") == "tabpanel" or node.attributes.get("id") in self._controlled:
            return True
        if before is None:
            return False
        opens = "[aria-expanded], button" if styled else "[aria-expanded]"
        return before.css_first(opens) is not None

    def _holds_most(self, node: LexborNode) -> bool:
        """Return whether an element is most of the page, as one that a dialog covers while it is open."""
        return self._body is not None and len(node.text()) * 2 > len(self._body.text())


def _in_article(node: LexborNode) -> bool:
    parent = node.parent
    while parent is not None and parent.tag not in ("article", "blockquote"):
        parent = parent.parent
    return parent is not None
