"""The gate: promote, hold or reject a candidate from paired statistics. Pure: no models, no stores, no clocks."""

from __future__ import annotations

from evaluation.gate.decision import TOUCHED, decide
from evaluation.gate.page import report_markdown
from evaluation.gate.records import GateCheck, GateConfig, GateEvidence, GateReport, PairedScore

__all__ = [
    "TOUCHED",
    "GateCheck",
    "GateConfig",
    "GateEvidence",
    "GateReport",
    "PairedScore",
    "decide",
    "report_markdown",
]
