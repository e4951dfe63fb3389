"""A document that leaves the weights: learned, erased, learned without it, and proved to be gone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner, Result

from evaluation.common.errors import LineageError
from pipelines.adapt_student import erasure as proof
from pipelines.adapt_student.config import NightConfig
from pipelines.adapt_student.flow import adapted
from pipelines.adapt_student.plan import NIGHTS, RESULT
from pipelines.adapt_student.state import Erasure, read_erasure, student_directory, student_version
from pipelines.cli import app
from pipelines.inbox.documents import InboxDocument
from pipelines.lineage.registry import Registry
from pipelines.lineage.versions import AGAIN_TAG, CHAMPION, PREVIOUS
from pipelines.settings import TrackingConfig, load
from tests.pipelines.adapt_student.factories import DEMO, SMALL, arrivals, deliver

FAST = (*SMALL, "questions=null", "gate=null", "probes=4", "writing={edits: 6, learned: 6}", "update.epochs=16")
"""A night without a gate that learns enough for a document to be missed."""


class Killed(BaseException):
    """Raised in place of a step, as a kill would end the process there."""


@pytest.mark.slow
def test_forgotten_document_leaves_the_weights_and_a_killed_command_is_finished(
    tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_HOME", "PREFECT_LOCAL_STORAGE_PATH", "PREFECT_MEMO_STORE_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "prefect"))  # the command sets what is not set
    place, told = tmp_path / "work", [part for override in FAST for part in ("--set", override)]

    def forget(name: str, *options: str) -> Result:
        command = ["forget", name, "--because", "asked to", "--work-dir", str(place), *options]
        return CliRunner().invoke(app, command, env={"COLUMNS": "200", "USER": "ada"})

    gate, (gone, kept) = InboxDocument(text="The gate is open.", source="gate", route="memory"), arrivals(2, 3, dated=0)
    for night in ([gate], [gone, kept]):
        deliver(place, night)
        assert adapted(str(DEMO), list(FAST), str(place)).outcome == "promoted"
    registry, retrain = Registry.open(TrackingConfig(), place), ("--config", str(DEMO), *told)

    shown = forget(gone.id, "--dry-run", *retrain)
    assert shown.exit_code == 0, shown.output
    for said in (gone.id, "files deleted: version 2", "from version 1 of", "1 document that version 2 holds"):
        assert said in shown.output
    settings = load(DEMO, NightConfig, FAST)
    known = Erasure(documents=(gone.id,), reason="", who="", versions=(2,), champion=2, clean=1)
    assert proof.prove(settings, registry, known, place) is False, "the champion still holds it"
    assert forget(gone.id).exit_code == 1, "it is out of the inbox, and not of the weights"
    assert (registry.aliases("student")[CHAMPION], read_erasure(place)) == (2, None)

    with monkeypatch.context() as patch:
        patch.setattr(proof, "prove", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            CliRunner().invoke(
                app,
                ["forget", gone.id, "--because", "asked to", "--work-dir", str(place), *retrain],
                catch_exceptions=False,
            )
    assert read_erasure(place) is not None
    done = forget(gone.id, *retrain)
    assert done.exit_code == 0, done.output
    assert "Gone: " in done.output
    assert read_erasure(place) is None

    aliases = registry.aliases("student")
    assert (aliases[CHAMPION], aliases[PREVIOUS], len(registry.history("student"))) == (3, 1, 3)
    assert student_version(registry, 3, place).state.ids == {gate.id, kept.id}
    assert registry.tags("student", 3)[AGAIN_TAG] == "asked to"
    result = json.loads((place / NIGHTS / "night-0003" / RESULT).read_bytes())
    assert (result["erasing"], result["parent"], [each["id"] for each in result["new"]]) == ("asked to", 1, [kept.id])
    with pytest.raises(LineageError, match="was erased on"):
        registry.promote("student", 2)
    with pytest.raises(LineageError, match="because: asked to"):
        registry.fetch("student", 2, tmp_path / "again")
    assert not student_directory(place, 2).exists()
    source = MlflowClient(f"sqlite:///{place / 'mlflow.db'}").get_model_version("preceptor-student", "2").source
    assert not Path(source.removeprefix("file://").replace("%20", " ")).exists()
    record = proof_record(place)
    assert record["gone"] is True
    assert record["versions"] == {"learned it": 2, "before it": 1, "in use now": 3}
    held, now = (record["by_question"][who]["choice"] for who in ("learned it", "in use now"))
    assert sum(held) > sum(now)
    text = json.dumps(record)
    words = {gone.title, *gone.entities, *(each.answer for each in gone.questions)}
    found = [word for word in words if re.search(rf"\b{re.escape(word)}\b", text)]
    assert not found, "ids, digests and figures alone"
    assert adapted(str(DEMO), list(FAST), str(place)).outcome == "nothing new"


def proof_record(place: Path) -> dict[str, Any]:
    """Return the newest record of an erasure, and see that its run is named for what came of it."""
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`preceptor.kind` = 'erasure'")
    assert [run.data.tags["preceptor.outcome"] for run in runs] == ["gone", "not gone"]
    path = client.download_artifacts(runs[0].info.run_id, "erasure.json")
    record: dict[str, Any] = json.loads(Path(path).read_bytes())
    return record
