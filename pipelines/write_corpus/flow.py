"""The flow `write-corpus`: documents become a training corpus whose budget goes where a student learns the most."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from evaluation.common.data import digest_json
from pipelines.execution import content_key
from pipelines.flow_run import entered
from pipelines.lineage.run import Lineage
from pipelines.write_corpus.config import AUTO, CorpusRequest, open_config, refuse_foreign
from pipelines.write_corpus.making import opened
from pipelines.write_corpus.output import CorpusResult

FLOW_NAME = "write-corpus"


@flow(name=FLOW_NAME, persist_result=False)
def write_corpus(
    documents: list[str],
    out: str,
    tokens: int,
    kinds: str = AUTO,
    writer: str = "",
    student: str = "",
    replay: str = "",
    replay_share: float = 0.2,
    licence: str = "unknown",
    config_path: str = "configs/write-corpus.yaml",
    overrides: list[str] | None = None,
    work_dir: str = ".preceptor",
) -> CorpusResult:
    """Write a training corpus from documents; started again after a kill, it resumes and ends with the same rows.

    For the arguments see `CorpusRequest`; completions, trials and the embedded stores are in `work_dir`.
    """
    request = CorpusRequest(tuple(documents), out, tokens, kinds, writer, student, replay, replay_share, licence)
    refuse_foreign(Path(out))
    ref = open_config(Path(config_path), student, writer, overrides or (), Path(work_dir))
    config, place = ref.config, Path(work_dir)
    with entered(place, config.name) as flow_run, opened(ref, request, place) as making:
        loop, reporter = making.loop, making.loop.reporter
        content = [config.digest, digest_json(request._asdict()), [p.section.digest for p in making.passages]]
        key = content_key(config, "corpus", content)
        lineage = Lineage(config, place, kind=FLOW_NAME, run_name=config.name, key=key, flow_run=flow_run)
        lineage.log_documents("train", [p.task for p in making.passages if p.split == "train"])
        lineage.log_documents("development", [p.task for p in making.passages if p.split == "development"])
        reporter.say(f"{'resuming' if lineage.resumed else 'new'} MLflow run {lineage.run_id}: {lineage.link}")
        with lineage.failing():
            loop.check_endpoints()
            result = making.run().model_copy(update={"mlflow_run_id": lineage.run_id})
            making.save(result)
            lineage.log_corpus(result, Path(out) / "README.md")
        lineage.finish("FINISHED")
    return result
