"""Secrets and personal data in what people say, replaced by their kind before anything is stored.

Patterns and checksums, no model: keys of common forms, private key blocks, passwords that are named as such, e-mail
addresses, phone numbers, IBANs, payment cards and embedded files. Names and addresses of people are not found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pipelines.inbox.transcripts import EMBEDDED

_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY.{0,20000}?(?:-----END [A-Z0-9 ]{0,40}-----|\Z)", re.S)
_VENDORS = r"sk[-_]|[pr]k_|hf_|github_pat_|glpat-|npm_|pypi-|AIza|ya29\.|xai-|gsk_|r8_|dckr_pat_|shpat_"
_KEYS = re.compile(rf"(?<![\w-])(?:{_VENDORS})(?=[\w.-]{{0,200}}[A-Z0-9])[\w-]{{16,}}")
_BEARER = re.compile(r"\b(?:bearer|basic)\s+([\w.~+/=-]{16,})", re.I)
_LONG = re.compile(r"(?<![\w-])(?=[\w-]{0,200}[a-z])(?=[\w-]{0,200}[A-Z])(?=[\w-]{0,200}\d)[A-Za-z0-9_-]{32,}(?![\w-])")
"""A word of capitals, small letters and digits that is longer than any name."""
_NAMED = re.compile(
    r"(?:pass(?:word|wort|phrase|code)|pwd|\bpin|token|(?:api|access)[ _]key) is:? "
    r"((?=\S*\d|\S*[^\w\s]\w)\S{3,199}[^\s.,;])",
    re.I,
)
"""In prose: a word with a digit or a symbol, so that "the password is wrong" stays."""
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}")
_CARD = re.compile(r"(?<![\w.,-])[2-6](?:[ -]?\d){12,18}(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_PHONE = re.compile(r"(?<![\w.,+])(?<!\d[ ()/-])(?:\+ ?)?\(?\d(?:[ ()./-]{0,2}\d){6,16}(?!\w|[ ()./-]{1,2}\d)")
"""What may be one: for the library to decide, which is slow."""
_REGIONS = ("US", "GB", "DE", "FR", "IN", "AU")
"""Whose phone numbers are known without a country code, and only in the groups in which they are written there."""
_OF_SECRETS = re.compile(r"pass(?:w|phrase|code)|pwd|secret|token|authoriz|(?:api|auth|access|private)[_-]?key", re.I)
"""Names of fields whose texts are secret as a whole."""


def redact(value: Any) -> tuple[Any, dict[str, int]]:
    """Return a JSON value with each secret and personal datum in its texts as `[kind]`, and their number by kind."""
    counts = Counter[str]()
    return _redacted(value, counts), dict(counts)


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


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield what is to be replaced; spans may overlap."""
    for pattern in (_PRIVATE_KEY, _KEYS, _LONG):
        yield from ((*match.span(), "secret") for match in pattern.finditer(text))
    for pattern in (_BEARER, _NAMED):
        yield from ((*match.span(1), "secret") for match in pattern.finditer(text))
    position = 0
    for line in text.splitlines(keepends=True):
        yield from ((position + start, position + end, "secret") for start, end in _known_keys(line))
        position += len(line)
    yield from ((*match.span(), "email") for match in _EMAIL.finditer(text))
    yield from ((*match.span(), "file") for match in EMBEDDED.finditer(text))
    yield from _numbers(text)


def _known_keys(line: str) -> Iterator[tuple[int, int]]:
    """Yield the spans that detect-secrets finds in a line: keys of services, passwords in URLs, and assignments."""
    from detect_secrets.plugins.basic_auth import BasicAuthDetector
    from detect_secrets.plugins.keyword import CONFIG_DENYLIST_REGEX_TO_GROUP, KeywordDetector

    for plugin in _plugins():
        group = 1 if isinstance(plugin, BasicAuthDetector) else 0
        yield from (match.span(group) for pattern in plugin.denylist for match in pattern.finditer(line))
    for value in KeywordDetector().analyze_string(line, CONFIG_DENYLIST_REGEX_TO_GROUP):
        # Without quotes the value is the rest of the line, which may be prose.
        first = (value.split() or [""])[0]
        for match in re.finditer(re.escape(value), line) if value else ():
            if line[match.start() - 1] in "\"'`":
                yield match.span()
            elif first == value.strip() or re.search(r"\d", first):
                yield match.start(), match.start() + len(first)


@lru_cache(maxsize=1)
def _plugins() -> tuple[Any, ...]:
    """Return detect-secrets' detectors of keys with a known form; what it says about entropy is noise in prose."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector

    kinds: list[Any] = [*get_mapping_from_secret_type_to_class().values()]
    return tuple(kind() for kind in kinds if issubclass(kind, RegexBasedDetector) and "IP" not in kind.__name__)


def _numbers(text: str) -> Iterator[tuple[int, int, str]]:
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
        regions = (None,) if match[0][0] == "+" else _REGIONS
        strict = Leniency.VALID if regions[0] is None else Leniency.STRICT_GROUPING
        if any(any(PhoneNumberMatcher(match[0], region, leniency=strict)) for region in regions):
            yield *match.span(), "phone"
