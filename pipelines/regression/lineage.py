"""What a regression test leaves in MLflow: a run of its own, with the reports as artifacts."""

from __future__ import annotations

from pathlib import Path

from pipelines.lineage_store import flatten_params, git_tags, lineage_errors, log_in_batches, open_store, run_tags
from pipelines.regression.reports import RegressionReport, SubjectRecord, junit_xml, regression_markdown
from pipelines.regression.suite import RegressionSuite
from pipelines.workspace import code_digest

FLOW_NAME = "check-regression"

_LONGEST_NOTE = 5000
"""Characters; MLflow refuses longer values of tags, and a suite may have many groups. The whole page is an artifact."""


def log_report(suite: RegressionSuite, report: RegressionReport, work_dir: Path, flow_run: str) -> str:
    """Log a report as a run of its own, and return the run's id.

    Args:
        suite: Gives the parameters.
        report: What was found.
        work_dir: Of the store.
        flow_run: Of Prefect.

    Raises:
        LineageError: The store refused.
    """
    store = open_store(suite.tracking, work_dir)
    page = regression_markdown(report)
    params = flatten_params(suite.model_dump(mode="json", exclude={"tracking", "pins", "groups"}))
    subjects = {"candidate": report.candidate, "baseline": report.baseline}
    tags = run_tags(
        kind=FLOW_NAME,
        seed=report.limits.seed,
        config_digest=suite.digest,
        code_digest=code_digest(),
        flow_run_id=flow_run,
        note=page[:_LONGEST_NOTE],
    ) | {"preceptor.outcome": report.outcome}
    metrics: dict[str, float] = {}
    for name, subject in subjects.items():
        if subject is not None:
            tags |= {f"preceptor.{name}{end}": value for end, value in _tags_of(subject).items()}
            metrics |= {f"{name}/{figure}": value for figure, value in _figures_of(subject).items()}
    for check in report.checks:
        if check.estimate is not None:
            metrics[f"change/{check.name}"] = check.estimate
    with lineage_errors(f"log the regression test of {suite.name!r}", store.uri):
        client = store.client
        run_id: str = client.create_run(store.experiment_id, run_name=f"{suite.name} {report.outcome}").info.run_id
        log_in_batches(client, run_id, params=params, tags={**git_tags(), **tags})
        for name, value in metrics.items():
            client.log_metric(run_id, _metric_name(name), value)
        client.log_text(run_id, page, "regression.md")
        client.log_text(run_id, report.model_dump_json(indent=2), "regression.json")
        client.log_text(run_id, junit_xml(report), "regression.xml")
        client.set_terminated(run_id, "FINISHED")
    return run_id


def _tags_of(subject: SubjectRecord) -> dict[str, str]:
    """Return tags of a subject, by what follows its name in theirs."""
    tags = {"": subject.subject, "_adapter_sha": subject.adapter_digest or "base"}
    return tags if subject.edits is None else {**tags, "_way_sha": subject.edits.digest}


def _figures_of(subject: SubjectRecord) -> dict[str, float]:
    """Return the figures of a subject that are known."""
    figures = {"accuracy": subject.accuracy, "probability": subject.probability, "probes": subject.probes}
    if subject.edits is not None:
        figures["unscored"] = subject.edits.missing / subject.edits.written
    return {name: figure for name, figure in figures.items() if figure is not None}


def _metric_name(name: str) -> str:
    """Return a name that MLflow takes: other characters than its own become `_`."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
