"""What is deployed on a Prefect server: flows, parameters, schedules and the automation."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from pydantic import ValidationError

from pipelines.adapt_student.config import NightConfig
from pipelines.check_regression.suite import RegressionSuite
from pipelines.settings import load
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.write_corpus.config import WriteCorpusConfig

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_deployment_names_a_flow_that_takes_its_parameters(
    deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.flows import load_flow_from_entrypoint

    monkeypatch.chdir(ROOT)
    flow: Any = load_flow_from_entrypoint(deployment["entrypoint"])
    assert deployment["entrypoint"].endswith(f":{flow.name.replace('-', '_')}")
    flow.validate_parameters(deployment["parameters"])
    assert not {name for name, p in inspect.signature(flow.fn).parameters.items() if p.default is p.empty} - set(
        deployment["parameters"]
    )


def test_schedules_are_valid_and_files_are_there() -> None:
    from prefect.client.schemas.schedules import CronSchedule

    by_name = {deployment["name"]: deployment for deployment in DEPLOYMENTS}
    assert set(by_name) == {"weekly", "nightly", "on-demand", "side-by-side", "corpus"}
    for deployment in DEPLOYMENTS:
        for schedule in deployment.get("schedules", ()):
            CronSchedule(**schedule)
    assert "schedules" not in by_name["on-demand"]
    load(ROOT / by_name["weekly"]["parameters"]["config_path"], TrainTeacherConfig)
    load(ROOT / by_name["nightly"]["parameters"]["config_path"], NightConfig)
    load(ROOT / by_name["corpus"]["parameters"]["config_path"], WriteCorpusConfig)
    load(ROOT / by_name["on-demand"]["parameters"]["suite_path"], RegressionSuite)


def test_automation_is_one_that_prefect_takes_and_listens_to_the_nights() -> None:
    from prefect.events.schemas.automations import AutomationCore

    text = (ROOT / "docs" / "automations" / "night.yaml").read_text(encoding="utf-8")
    for each in yaml.safe_load(text)["automations"]:
        with pytest.raises(ValidationError, match="block_document_id"):  # until somebody has put one in
            AutomationCore.model_validate(each)
    content = yaml.safe_load(text.replace("YOUR-BLOCK-ID", str(uuid4())))
    night, failed = [AutomationCore.model_validate(each) for each in content["automations"]]
    events = {f"preceptor.night.{name}" for name in ("held", "rejected", "documents-waiting")}
    assert night.trigger.expect == events  # type: ignore[union-attr]
    assert failed.trigger.expect == {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}  # type: ignore[union-attr]
