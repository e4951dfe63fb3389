"""`preceptor write-corpus` and `study`: the commands. Nothing heavy is imported before the arguments are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evaluation.common.errors import ConfigError
from evaluation.common.storage import write_atomically
from pipelines.process import JsonFile, WorkDir, exclusive, find_config, flow_process, prepare_process
from pipelines.terminal import open_console

ConfigOption = Annotated[
    Path, typer.Option("--config", help="YAML file with writer, student and device.", callback=find_config)
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a setting, such as teacher.chat=false.")]
StudentOption = Annotated[
    str | None, typer.Option("--student", help="Directory, hub id or shipped name [the config's].")
]


def write_corpus(
    documents: Annotated[
        list[Path], typer.Argument(help="Files and folders: PDF, office files, Markdown, JSON Lines ...")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory of the corpus; replaced as a whole.")] = Path("corpus"),
    tokens: Annotated[str, typer.Option("--tokens", help="Size of the training split, such as 500k or 2M.")] = "100k",
    kinds: Annotated[str, typer.Option("--kinds", help="auto, or names and YAML files between commas.")] = "auto",
    writer: Annotated[
        str | None, typer.Option("--writer", help="teacher@champion, a saved teacher, or a model [the config's].")
    ] = None,
    student: StudentOption = None,
    preview: Annotated[
        int | None, typer.Option("--preview", min=1, help="So many lines of each kind, with time and cost; no corpus.")
    ] = None,
    replay: Annotated[Path | None, typer.Option("--replay", help="File with general text to mix in.")] = None,
    replay_share: Annotated[
        float, typer.Option("--replay-share", min=0.0, max=0.9, help="Its share of the training split's tokens.")
    ] = 0.2,
    licence: Annotated[str, typer.Option("--licence", help="Licence of the documents, for every row.")] = "unknown",
    config: ConfigOption = Path("configs/write-corpus.yaml"),
    set_: SetOption = None,
    work_dir: WorkDir = Path(".preceptor"),
    json_file: JsonFile = None,
) -> None:
    """Write a training corpus from documents: many kinds of lines, filtered, with their sources.

    With a student, `--kinds auto` spends the tokens on the kinds from which it learns the most. The same command
    resumes what was killed.
    """
    from pipelines.write_corpus.config import CorpusRequest, open_config, refuse_foreign, tokens_of

    paths = tuple(map(str, documents))
    named = writer or "", student or "", str(replay or "")
    request = CorpusRequest(paths, str(out), tokens_of(tokens), kinds, *named, replay_share, licence)
    refuse_foreign(out)
    ref = open_config(config, request.student, request.writer, set_ or (), work_dir)
    if preview is not None:
        prepare_process(work_dir)
        from pipelines.write_corpus.making import print_preview

        with exclusive(work_dir):
            print_preview(ref, request, work_dir, preview)
        return
    with flow_process(work_dir):
        from pipelines.write_corpus.flow import write_corpus as flow

        arguments = {**request._asdict(), "documents": list(paths), "config_path": str(config)}
        result = flow(**arguments, overrides=list(set_ or ()), work_dir=str(work_dir))
        console = open_console()
        console.print(result.funnel.table)
        for line in result.lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if json_file is not None:
            write_atomically(json_file, result.model_dump_json(indent=2) + "\n")


def study(
    corpus: Annotated[Path, typer.Argument(help="Directory of a corpus.")],
    student: StudentOption = None,
    config: ConfigOption = Path("configs/write-corpus.yaml"),
    set_: SetOption = None,
    work_dir: WorkDir = Path(".preceptor"),
    json_file: JsonFile = None,
) -> None:
    """Train a student on parts of a corpus, and show its accuracy over tokens on the corpus's questions."""
    if not corpus.is_dir():
        raise ConfigError(f"study: {str(corpus)!r} is no directory. Give the --out of a `preceptor write-corpus`.")
    with flow_process(work_dir):
        from pipelines.write_corpus.study import study as flow

        result = flow(str(corpus), student or "", str(config), list(set_ or ()), str(work_dir))
        open_console().print(result.table)
        if json_file is not None:
            write_atomically(json_file, result.model_dump_json(indent=2) + "\n")
