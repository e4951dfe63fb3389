"""What stands above the tables and beside the pictures of the document."""

from __future__ import annotations

PICTURES = {
    "variants": "Accuracy by variant",
    "budgets": "Accuracy against the tokens of a self-edit",
    "rounds": "Mean reward by round",
    "arms": "Arms less their reference",
}
GAINS = (
    "Paired by document. Bootstrap: over seeds and documents. Random effects: seeds as drawn from all seeds (Paule and "
    "Mandel 1982; Hartung and Knapp 2001). p: two-sided sign-flip test over documents, adjusted for the number of "
    "differences. Detectable: the smallest true difference, in points, that so many documents show with 80 % power; "
    "documents needed: those that would show the measured one."
)
BUDGETS = (
    "Lines of several self-edits of one teacher are used one after another until the tokens are spent, so that longer "
    "self-edits say more of what this teacher would say. Mean tokens taken in brackets."
)
PHRASINGS = "Means over seeds. Rewards use none of these phrasings."
RETENTION = (
    "Share of questions on what the student knew before the update that it answers no more, less what it answers anew; "
    "above 0 is lost. For each point learned: over the gain in accuracy over the base, where that is above 0. The last "
    "row is paired by document."
)
RELIABILITY = (
    "Share of the spread of rewards between the self-edits of a document that is not noise between updates, in [0, 1], "
    "of rewards from one update, from the mean of three (Spearman 1910; Brown 1910), and as the teacher learned from "
    "them, with the mean number of updates that those rest on."
)
EDITS = (
    "Means over self-edits and seeds. Facts covered: share of the document's facts that a true line states, name "
    "first. Questions held: share that occurs word by word. Distinct words and word pairs: share among a document's "
    "self-edits."
)
TRANSFER = "The same self-edits, taken into a student that no teacher was trained with."
