"""The decision about a candidate."""

from __future__ import annotations

from evaluation.gate.checks import (
    check_canaries,
    check_collapse,
    check_gain,
    check_groups,
    check_no_loss,
    check_scored,
)
from evaluation.gate.records import GateCheck, GateConfig, GateEvidence, GateReport, decision_of

EARLIER, PROBES, TOUCHED = "earlier documents", "probes", "what was known of the same subjects"
"""Names of the check of all earlier nights together, of the check that no probe was asked, and of the check of what the
new documents are about."""


def decide(evidence: GateEvidence, config: GateConfig) -> GateReport:
    """Return whether a candidate is promoted, held or rejected, with every check behind it.

    Promoted is what passes every check, so a candidate that is truly at the margin of any of them is promoted in at
    most 1 - confidence of cases: all must pass, which needs no correction for their number (Berger 1982,
    "Multiparameter Hypothesis Testing and Acceptance Sampling", Technometrics 24). A check that failed rejects.
    Anything else holds, with the number of documents that would decide. If any score of the candidate rises, the
    decision does not become worse.

    Args:
        evidence: What was measured.
        config: What must be shown.
    """
    checks = (
        check_scored(evidence.unscored),
        check_canaries(evidence.canaries),
        check_collapse(evidence.collapsed, evidence.answered, config.most_collapsed),
        check_gain("new documents", evidence.new, config.new_margin, config),
        *_touched(evidence, config),
        *_earlier(evidence, config),
        *_probes(evidence, config),
    )
    return GateReport(decision=decision_of(checks), checks=checks, config=config)


def _touched(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    """Return the check of what was known about the subjects of the new documents; often little or nothing was."""
    if evidence.touched:
        return check_groups({TOUCHED: evidence.touched}, config.touched_margin, config)
    return (GateCheck(name=TOUCHED, verdict="pass", sentence="Nothing was known about them.", documents=0),)


def _earlier(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    """Return the check of all earlier nights together and one of each."""
    if not evidence.earlier:
        told = "There are none: the champion was taught nothing yet."
        return (GateCheck(name=EARLIER, verdict="pass", sentence=told, documents=0),)
    # The same document in two nights stays two: each night's questions are its own.
    scores = tuple(
        score.model_copy(update={"document": f"{night}/{score.document}"})
        for night, scored in evidence.earlier.items()
        for score in scored
    )
    together = check_no_loss(EARLIER, scores, config.earlier_margin, config)
    groups = check_groups(evidence.earlier, config.group_margin, config)
    return (together, *(group.model_copy(update={"name": f"night {group.name}"}) for group in groups))


def _probes(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    """Return one check for each set of probes."""
    if evidence.probes:
        return tuple(
            check_no_loss(f"probes {name}", scores, config.probe_margin, config)
            for name, scores in evidence.probes.items()
        )
    if config.probes_required:
        return (check_no_loss(PROBES, (), config.probe_margin, config),)
    told = "None were asked, and none are required."
    return (GateCheck(name=PROBES, verdict="pass", sentence=told, documents=0),)
