"""Control variants: what a gain is made of. Each is a set of self-edits that is scored as all others are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evaluation.microworld.oracle import sheet_swaps
from evaluation.tasks import KnowledgeTask
from pipelines import controls
from pipelines.comparison import FixedKind, scored_variant, teacher_variant
from pipelines.records import EditRecord, SamplingRecord
from pipelines.results import VariantRecord
from pipelines.units import Units
from pipelines.workspace import Workspace


def control_variants(
    ws: Workspace,
    units: Units,
    tasks: Sequence[KnowledgeTask],
    trained: VariantRecord,
    fixed: FixedKind | None,
    proxy_policy: str | None,
) -> list[VariantRecord]:
    """Return the controls that the run asks for and that its data allows.

    Args:
        ws: The run's workspace.
        units: Where units run.
        tasks: Documents to ask about.
        trained: The trained teacher's variant, whose self-edits some controls alter.
        fixed: The best fixed kind; without one there is no control at equal tokens.
        proxy_policy: State of the teacher that was trained on the proxy reward; None where there is none.
    """
    wanted, edits = ws.config.comparison.controls, edits_of(ws, trained)
    found: list[VariantRecord] = []

    def add(name: str, label: str, made: Sequence[EditRecord]) -> None:
        found.append(scored_variant(ws, units, name, label, SamplingRecord(edits=tuple(made), seconds=0.0), tasks))

    if "null_edit" in wanted:
        add("null_edit", "a self-edit that says nothing", controls.null_edits(tasks))
    if "other_document" in wanted:
        add("other_document", "trained teacher, another document's", controls.other_documents_edits(edits, tasks))
    if "swapped_values" in wanted:
        add("swapped_values", "trained teacher, values swapped", controls.swapped_edits(edits, _swaps(ws, tasks)))
    if "equal_tokens" in wanted and fixed is not None:
        made = _fixed_at_equal_tokens(ws, units, tasks, edits, fixed)
        add("fixed_kind_equal_tokens", f"{fixed.label}, equal tokens", made)
    if "proxy_teacher" in wanted and proxy_policy is not None:
        prompt = ws.config.teacher.prompt
        label = "teacher trained on the proxy"
        found.append(teacher_variant(ws, units, "proxy_teacher", label, proxy_policy, prompt, tasks))
    if "oracle" in wanted and ws.sheets is not None:
        add("oracle", "all facts", controls.oracle_edits(tasks, ws.sheets))
    return found


def edits_of(ws: Workspace, variant: VariantRecord) -> tuple[EditRecord, ...]:
    """Return the self-edits that a variant is made of, without the refused ones that others took the place of."""
    count = ws.config.comparison.edits
    return tuple(candidate.edit for candidate in variant.candidates if candidate.edit.index < count)


def token_counter(ws: Workspace) -> Callable[[str], int]:
    """Return what counts the tokens of a text as the teacher writes it."""
    tokenizer = ws.policy.tokenizer

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def _swaps(ws: Workspace, tasks: Sequence[KnowledgeTask]) -> dict[str, dict[str, str]]:
    """Return by document which value stands in for which."""
    if ws.sheets is not None:
        return {task.id: sheet_swaps(ws.sheets[task.id]) for task in tasks}
    return {task.id: controls.answer_swaps(task) for task in tasks}


def _fixed_at_equal_tokens(
    ws: Workspace, units: Units, tasks: Sequence[KnowledgeTask], trained: Sequence[EditRecord], fixed: FixedKind
) -> list[EditRecord]:
    """Return the best fixed kind's lines, as many for each self-edit of the trained teacher as its tokens allow."""
    indices, count = sorted({edit.index for edit in trained}), token_counter(ws)
    pooled = 3  # self-edits whose lines are used: enough for a trained one that is twice as long
    seed = ws.seed("sample", "equal tokens")
    sampled = units.sample(None, fixed.prompt, tasks, n=pooled * len(indices), seed=seed).edits
    made = []
    for place, index in enumerate(indices):
        budgets = {edit.document_id: max(edit.tokens, 1) for edit in trained if edit.index == index}
        pool = [e for e in sampled if e.index // pooled == place and e.document_id in budgets]
        made += [e.model_copy(update={"index": index}) for e in controls.budgeted(pool, budgets, count)]
    return made
