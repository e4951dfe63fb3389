"""The vocabulary of a parse: why a line was dropped, why a text was rejected, what else was noticed."""

from __future__ import annotations

from enum import StrEnum


class DropReason(StrEnum):
    """Why a line that was written did not become part of the self-edit."""

    MARKER_ONLY = "marker_only"
    """No letter in it: a rule, a fence, a lone number or bullet, a tag."""
    HEADING = "heading"
    """A title, a label or the introduction of a list; it states nothing."""
    PREAMBLE = "preamble"
    """Words to the reader around the content ("Certainly! Here is ...:", "I hope this helps")."""
    ECHOED_PROMPT = "echoed_prompt"
    """Repeats the prompt: its instruction, one of its labels or its passage."""
    OTHER_TASK = "other_task"
    """Follows the end of the edit: the model went on with another passage, a chat or a closing remark."""
    DUPLICATE = "duplicate"
    """Says what an earlier line of this edit says, up to case, spaces and final punctuation."""
    DIGIT_LOOP = "digit_loop"
    """Counts or repeats a number ("1. 1. 1.", "1. 2. 3.")."""
    UNANSWERED_QUESTION = "unanswered_question"
    """A question that got no answer."""
    UNPAIRED_ANSWER = "unpaired_answer"
    """An answer to no question."""
    CHOICE = "choice"
    """An option of a multiple-choice question."""
    CUT_LINE = "cut_line"
    """The last line, when the engine stopped at the token limit in the middle of it."""
    LINE_TOO_LONG = "line_too_long"
    """Longer than `max_line_characters`."""
    OVER_LIMIT = "over_limit"
    """Comes after `max_lines` implications."""
    EXTRA_SPECIFICATION = "extra_specification"
    """A JSON block with a part that an earlier block has already given."""


class RejectReason(StrEnum):
    """Why a text is no self-edit."""

    EMPTY = "empty"
    """Nothing but white space."""
    NO_USABLE_LINES = "no_usable_lines"
    """Every line was dropped, and there is no specification."""
    DIGIT_LOOP = "digit_loop"
    """As above, and the text counts or repeats a number."""
    INVALID_JSON = "invalid_json"
    """A specification was begun that is not JSON."""
    UNKNOWN_FIELD = "unknown_field"
    """A specification has a field that is neither the paper's nor ours."""
    INVALID_VALUE = "invalid_value"
    """A field of a specification has a value of the wrong type, or is none of the allowed names."""
    OUT_OF_RANGE = "out_of_range"
    """A hyperparameter lies outside the range that `TrainingSpec` declares."""


class Flag(StrEnum):
    """What else was noticed about a text; a flag alone never rejects it."""

    CUT_AT_CAP = "cut_at_cap"
    """The engine stopped at its token limit, or, when that is unknown, the last line breaks off."""
    DIGIT_LOOP = "digit_loop"
    """At least one line counts or repeats a number."""
    REPETITIVE = "repetitive"
    """More than 30% of the lines are duplicates, or more than 1,500 characters compress to under a quarter."""
    OTHER_SCRIPT = "other_script"
    """More than a fifth of the letters are not Latin, and the prompt's are."""
    UNDECODABLE = "undecodable"
    """Lone surrogates were replaced by U+FFFD."""
