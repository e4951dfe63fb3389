"""Kinds of self-edits that a teacher is asked for: instruction and cue of each, in one form (`teacher.prompts`).

SEAL's five (arXiv 2506.10943), the seven of SPA (arXiv 2603.22213) and the two steps of Active Reading (arXiv
2508.09494), in words of our own. Each asks for lines that can be understood without the passage, because every line is
trained on alone. Cues have no space at the end, because most tokenizers join it to the next word.
"""

from __future__ import annotations

from collections.abc import Mapping

_ALONE = " Name things in full, so that each line can be understood without the passage."
_IMPLICATIONS = (
    "Read the passage below and list what follows from it: what it states and what can be concluded from it."
)

SEAL: Mapping[str, tuple[str, str]] = {
    "implications": (_IMPLICATIONS, "Implications:\n"),
    "implications-long": (f"{_IMPLICATIONS} Make it a long list.", "Implications:\n"),
    "implications-very-long": (
        f"{_IMPLICATIONS} Make it a very long list that leaves nothing out: every fact, from every side.",
        "Implications:\n",
    ),
    "rewrite": (
        "Read the passage below and rewrite it in several different ways, each version on a line of its own.",
        "Rewritten passages:\n",
    ),
    "self-qa": (
        "Read the passage below and rewrite it as numbered questions, each followed by its answer.",
        "Question 1:",
    ),
}
SPA: Mapping[str, tuple[str, str]] = {
    "spa-key-concepts": (
        "List the key concepts of the passage below, one on each line: what it is, and what the passage says of it."
        + _ALONE,
        "Key concepts:\n",
    ),
    "spa-mind-map": (
        "Turn the passage below into a mind map. Write each link as a sentence on a line of its own: two things and "
        "how they belong together." + _ALONE,
        "Mind map:\n",
    ),
    "spa-implications": (
        "Say what follows from the passage below: causes, consequences, and what must be true although it is not said. "
        "Write one on each line." + _ALONE,
        "Implications:\n",
    ),
    "spa-questions": (
        "Write numbered questions about the passage below that ask for thought (why, how, what if, what compares), and "
        "after each its answer with the facts that it rests on.",
        "Question 1:",
    ),
    "spa-case-studies": (
        "Invent short cases in which someone has to apply what the passage below says. Tell each on a line of its own: "
        "the case, and which facts of the passage settle it how." + _ALONE,
        "Case studies:\n",
    ),
    "spa-discussion": (
        "Two experts talk about the passage below. Write down each remark as a sentence on a line of its own, without "
        "saying who speaks: they state its facts, doubt them, compare them and agree on what they mean." + _ALONE,
        "Discussion:\n",
    ),
    "spa-teacher": (
        "Teach the passage below to a class that has not read it: say each fact, explain it, give an example, and say "
        "it again in simpler words, a sentence on each line." + _ALONE,
        "Lesson:\n",
    ),
}
STRATEGIES, STRATEGY = "active-reading-strategies", "active-reading"
"""Templates of the two steps; `{strategy}` in the second one's instruction stands for a line written by the first."""
ACTIVE_READING: Mapping[str, tuple[str, str]] = {
    STRATEGIES: (
        "You will have to know everything in the passage below by heart. List different strategies for learning it, "
        "one on each line: what to do with which of its facts.",
        "Strategies:\n1.",
    ),
    STRATEGY: (
        "Study the passage below with this strategy: {strategy}\nWrite down what comes of it, as sentences or as "
        "questions with answers, one on each line." + _ALONE,
        "Notes:\n",
    ),
}
