"""Plain text: paragraphs, and no headings that could be told for sure."""

from __future__ import annotations

from pipelines.inbox.blocks import Extract, decoded, paragraphs


def read_plain(content: bytes) -> Extract:
    """Return the paragraphs of a text in UTF-8.

    Raises:
        UnreadableError: It is not UTF-8.
    """
    return Extract(paragraphs(decoded(content)))
