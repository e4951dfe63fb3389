"""Where MLflow shows what is logged: addresses of runs, and the view of an experiment that they open."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

LOCAL = "http://127.0.0.1:5000"
"""Where `preceptor ui` shows a store that no server has."""
VIEW_TAG = "mlflow.sharedViewState.preceptor"
"""Tag of an experiment: its prepared view, as the button "Share" of MLflow's page of runs stores one."""
_CHANGES = ("new documents", "earlier documents", "probes general")
_SHOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "train-teacher": (
        "variant",
        (
            *(f"params.{name}" for name in ("variant", "prompt", "seed", "teacher_version")),
            *(f"metrics.eval/accuracy{end}" for end in ("", "_ci_low", "_ci_high")),
            *("metrics.eval/edit_tokens", "metrics.eval/training_tokens"),
        ),
    ),
    "adapt-student": (
        "adapt-student",
        (
            *(
                "tags.preceptor.outcome",
                "tags.preceptor.version",
                "metrics.night/new_before",
                "metrics.night/new_after",
            ),
            *(f"metrics.change/{name}{end}" for name in _CHANGES for end in ("", "_ci_low")),
        ),
    ),
    "check-regression": (
        "check-regression",
        (
            *("tags.preceptor.outcome", "tags.preceptor.candidate", "tags.preceptor.baseline"),
            *("metrics.candidate/accuracy", "metrics.baseline/accuracy"),
            *(f"metrics.change/documents{end}" for end in ("", "_ci_low", "_ci_high")),
        ),
    ),
    "compare-students": (
        "variant",
        (
            *(f"params.{name}" for name in ("suite", "student", "version", "night")),
            *(f"metrics.eval/accuracy{end}" for end in ("", "_ci_low", "_ci_high")),
            *("metrics.notes/probability", "metrics.eval/documents"),
        ),
    ),
}
"""By flow: the kind of the runs that its view lists, and the columns."""


def view_of(flow: str) -> str | None:
    """Return the prepared view of a flow's experiment, accuracy with its interval in sight; None for MLflow's own."""
    if flow not in _SHOWN:
        return None
    kind, columns = _SHOWN[flow]
    shown = [f"{group}.`{name}`" for group, _, name in (column.partition(".") for column in columns)]
    view: dict[str, object] = {"searchFilter": f"tags.`preceptor.kind` = '{kind}'", "selectedColumns": shown}
    # In order of their date, runs within a run are folded up under it.
    order = {"orderByKey": "metrics.`eval/accuracy`", "orderByAsc": False} if kind == "variant" else {}
    return json.dumps(view | order)


def runs_link(uri: str, experiment_id: str, *, prepared: bool = True) -> str:
    """Return the address of an experiment's runs in a store, in its prepared view."""
    view = "&viewStateShareKey=preceptor" if prepared else ""
    return f"{_address(uri)}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{view}"


def run_link(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page."""
    return f"{_address(uri)}/#/experiments/{experiment_id}/runs/{run_id}"


def artifact_links(experiment_id: str, run_id: str, files: Mapping[str, str]) -> str:
    """Return links to a run's artifacts, given with labels, in Markdown for its page, whatever server shows it."""
    place = f"#/experiments/{experiment_id}/runs/{run_id}/artifacts"
    return " · ".join(f"[{label}]({place}/{file})" for file, label in files.items())


def _address(uri: str) -> str:
    """Return where a store is shown: the server's own address, without a password, or else `LOCAL`."""
    return re.sub(r"//[^@/]*@", "//", uri).rstrip("/") if uri.startswith(("http://", "https://")) else LOCAL


def short_name(variant: str) -> str:
    """Return a variant's name as MLflow's list of runs has room for: `trained`, `fixed_kind=`."""
    return variant.replace("_teacher", "").replace("_equal_tokens", "=")
