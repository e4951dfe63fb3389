"""Exact and near-duplicates of training lines, in a document or over a corpus.

Near-duplicates share at least 0.8 of the distinct 5-grams of their words (Jaccard), by MinHash with locality-sensitive
hashing (Broder 1997; datatrove's and SlimPajama's setting). The similarity is an estimate from 128 hashes, with a
standard error of 0.035 at the threshold. Texts of fewer than five words are one gram each.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from teacher.parsing.lines import normalise

_WORDS_PER_GRAM, _THRESHOLD = 5, 0.8
_HASHES, _BANDS = 128, 16
"""Bands of 8 hashes find a pair at the threshold with a probability of 0.95."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+")


class Seen:
    """The texts so far; one for each document, and one for the corpus. About 1 KB per text."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._factors, self._shifts = generator.integers(1, 2**64, (2, _HASHES), dtype=np.uint64) | np.uint64(1)
        self._exact: set[str] = set()
        self._bands: dict[tuple[int, bytes], list[int]] = {}
        self._signatures: list[NDArray[np.uint32]] = []

    def add(self, text: str) -> Literal["exact", "near"] | None:
        """Add a text, and return whether it repeats an earlier one; a duplicate is not added."""
        key = normalise(unicodedata.normalize("NFKC", text))
        if key in self._exact:
            return "exact"
        signature = self._signature(key)
        bands = [(number, band.tobytes()) for number, band in enumerate(signature.reshape(_BANDS, -1))]
        candidates = {index for band in bands for index in self._bands.get(band, ())}
        if any((self._signatures[index] == signature).mean() >= _THRESHOLD for index in candidates):
            return "near"
        self._exact.add(key)
        for band in bands:
            self._bands.setdefault(band, []).append(len(self._signatures))
        self._signatures.append(signature)
        return None

    def _signature(self, text: str) -> NDArray[np.uint32]:
        """Return the least value of each hash over the text's grams, shape (128,)."""
        words = _WORD.findall(text) or [text]
        last = max(1, len(words) - _WORDS_PER_GRAM + 1)
        grams = {" ".join(words[i : i + _WORDS_PER_GRAM]) for i in range(last)}
        hashed = np.array([zlib.crc32(gram.encode()) for gram in grams], dtype=np.uint64)
        values: NDArray[np.uint64] = (hashed[:, None] * self._factors + self._shifts) >> np.uint64(32)  # multiply-shift
        least: NDArray[np.uint32] = values.min(axis=0).astype(np.uint32)
        return least
