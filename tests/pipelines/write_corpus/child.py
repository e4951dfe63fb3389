"""A process that writes a corpus without Prefect and MLflow, to be killed: what it has written is in files alone."""

from __future__ import annotations

import sys
from pathlib import Path

from evaluation.engines import endpoint
from pipelines.process import exclusive
from pipelines.write_corpus.config import CorpusRequest, open_config
from pipelines.write_corpus.making import opened


def main(config: str, documents: str, out: str, work_dir: str, tokens: str) -> None:
    endpoint.FIRST_WAIT = 0.01
    kinds = "implications,self-qa,active-reading,spa-mind-map"
    request = CorpusRequest((documents,), out, int(tokens), kinds=kinds)
    place = Path(work_dir)
    ref = open_config(Path(config), "", "", (), place)
    with exclusive(place), opened(ref, request, place) as making:
        making.save(making.run())


if __name__ == "__main__":
    main(*sys.argv[1:])
