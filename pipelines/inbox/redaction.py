"""Secrets and personal data in what people say, replaced by their kind before anything is stored.

Patterns and checksums, no model: keys of common forms, private key blocks, passwords that are named as such, e-mail
addresses, phone numbers, IBANs, payment cards and embedded files. Names and addresses of people are not found.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from pipelines.inbox.transcripts import EMBEDDED

Kind = Literal["secret", "email", "phone", "iban", "card", "file"]

_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY.{0,20000}?(?:-----END [A-Z0-9 ]{0,40}-----|\Z)", re.S)
_VENDORS = r"sk[-_]|[pr]k_|hf_|github_pat_|glpat-|npm_|pypi-|AIza|ya29\.|xai-|gsk_|r8_|dckr_pat_|shpat_"
_KEYS = re.compile(rf"(?<![\w-])(?:{_VENDORS})(?=[\w.-]{{0,200}}[A-Z0-9])[\w-]{{16,}}")
_BEARER = re.compile(r"\b(?:bearer|basic)\s+([\w.~+/=-]{16,})", re.I)
_LONG = re.compile(r"(?<![\w-])(?=[\w-]{0,200}[a-z])(?=[\w-]{0,200}[A-Z])(?=[\w-]{0,200}\d)[A-Za-z0-9_-]{32,}(?![\w-])")
"""A word of capitals, small letters and digits that is longer than any name."""
_NAMED = re.compile(
    r"(?:pass(?:word|wort|phrase|code)|pwd|\bpin|token|(?:api|access)[ _]key)\s+is:?\s+(\S{4,200})", re.I
)
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}")
_CARD = re.compile(r"(?<![\w.,-])[2-6](?:[ -]?\d){12,18}(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_PHONE = re.compile(r"(?<![\w.,+])(?<!\d[ ()/-])(?:\+ ?)?\(?\d(?:[ ()./-]{0,2}\d){6,16}(?!\w|[ ()./-]{1,2}\d)")
"""What may be one: for the library to decide, which is slow."""
_REGIONS = ("US", "GB", "DE", "FR", "IN", "AU")
"""Whose phone numbers are known without a country code, and only in the groups in which they are written there."""
_OF_SECRETS = re.compile(
    r"pass(?:w|phrase|code)|pwd|secret|token|(?:api|auth|access|private)[_-]?key|authorization", re.I
)
"""Names of fields whose texts are secret as a whole."""


class Redacted(NamedTuple):
    """A JSON value without secrets and personal data."""

    value: Any
    counts: dict[str, int]
    """Spans that were replaced, by kind."""


def redact(value: Any) -> Redacted:
    """Return a JSON value with each secret and personal datum in its texts replaced by `[kind]`."""
    counts: Counter[str] = Counter()
    return Redacted(_redacted(value, counts), dict(counts))


def _redacted(value: Any, counts: Counter[str], name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _redacted(each, counts, str(key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_redacted(each, counts, name) for each in value]
    if not isinstance(value, str) or not value:
        return value
    if _OF_SECRETS.search(name):
        counts["secret"] += 1
        return "[secret]"
    parts, position = list[str](), 0
    for start, end, kind in sorted(_spans(value), key=lambda span: (span[0], -span[1])):
        if end > position:
            if start >= position:  # else it continues the one before
                parts += value[position:start], f"[{kind}]"
                counts[kind] += 1
            position = end
    return "".join((*parts, value[position:]))


def _spans(text: str) -> Iterator[tuple[int, int, Kind]]:
    """Yield what is to be replaced; spans may overlap."""
    for pattern in (_PRIVATE_KEY, _KEYS, _LONG):
        yield from ((*match.span(), "secret") for match in pattern.finditer(text))
    yield from ((*match.span(1), "secret") for match in _BEARER.finditer(text))
    yield from ((match.start(1), match.end(1) - (text[match.end(1) - 1] in ".,;"), "secret") for match in _named(text))
    position = 0
    for line in text.splitlines(keepends=True):
        yield from ((position + start, position + end, "secret") for start, end in _known_keys(line))
        position += len(line)
    yield from ((*match.span(), "email") for match in _EMAIL.finditer(text))
    yield from ((*match.span(), "file") for match in EMBEDDED.finditer(text))
    yield from _numbers(text)


def _named(text: str) -> Iterator[re.Match[str]]:
    """Yield passwords in prose: a word with a digit or a symbol, so that "the password is wrong" stays."""
    return (match for match in _NAMED.finditer(text) if re.search(r"[\d\W_]", match[1].rstrip(".,;!?)\"'")))


def _known_keys(line: str) -> Iterator[tuple[int, int]]:
    """Yield the spans that detect-secrets finds in a line: keys of services, passwords in URLs, and assignments."""
    from detect_secrets.plugins.basic_auth import BasicAuthDetector
    from detect_secrets.plugins.keyword import CONFIG_DENYLIST_REGEX_TO_GROUP, KeywordDetector

    for plugin in _plugins():
        group = 1 if isinstance(plugin, BasicAuthDetector) else 0
        yield from (match.span(group) for pattern in plugin.denylist for match in pattern.finditer(line))
    for value in KeywordDetector().analyze_string(line, CONFIG_DENYLIST_REGEX_TO_GROUP):
        # Without quotes the value is the rest of the line, which may be prose.
        start = line.find(value)
        first = value.split()[0] if value.split() else ""
        quoted = start > 0 and line[start - 1] in "\"'`"
        if quoted or first == value.strip() or re.search(r"\d", first):
            yield start, start + len(value if quoted else first)


@lru_cache(maxsize=1)
def _plugins() -> tuple[Any, ...]:
    """Return detect-secrets' detectors of keys with a known form; what it says about entropy is noise in prose."""
    import detect_secrets.plugins as package
    from detect_secrets.plugins.base import RegexBasedDetector

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return tuple(kind() for kind in RegexBasedDetector.__subclasses__() if kind.__name__ != "IPPublicDetector")


def _numbers(text: str) -> Iterator[tuple[int, int, Kind]]:
    """Yield bank accounts, cards and phone numbers whose checksums or plans are right."""
    from phonenumbers import Leniency, PhoneNumberMatcher
    from stdnum import iban, luhn

    for match in _IBAN.finditer(text):
        account = match[0]
        while account and not iban.is_valid(account):
            account = account.rpartition(" ")[0]  # a word in capitals behind it
        if account:
            yield match.start(), match.start() + len(account), "iban"
    for match in _CARD.finditer(text):
        if luhn.is_valid(re.sub(r"\D", "", match[0])):
            yield *match.span(), "card"
    for match in _PHONE.finditer(text):
        for region in _REGIONS if match[0][0] != "+" else (None,):
            strict = Leniency.VALID if region is None else Leniency.STRICT_GROUPING
            if any(PhoneNumberMatcher(match[0], region, leniency=strict)):
                yield *match.span(), "phone"
                break
