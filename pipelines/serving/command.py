"""`preceptor serve`: the command. Nothing heavy is imported before its arguments are checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from evaluation.errors import ConfigError
from pipelines.process import prepare_process
from pipelines.serving.config import ServeConfig, read_api_key
from pipelines.serving.options import ServingOptions

_Config = Annotated[
    Path | None, typer.Option("--config", help="YAML file of a run or a night, for its student and its store.")
]
_WorkDir = Annotated[Path, typer.Option("--work-dir", help="Directory for records, adapters and the embedded stores.")]
_Host = Annotated[str, typer.Option("--host", help="Address to listen on; any but loopback needs --api-key-env.")]
_Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
_KeyEnv = Annotated[
    str | None, typer.Option("--api-key-env", help="Environment variable that holds the key clients must show.")
]
_Student = Annotated[
    str | None, typer.Option("--student", help="Directory, hub name or micro-student [the champion's own base].")
]
_Poll = Annotated[float | None, typer.Option("--poll", help="Seconds between two looks at the registry [5].")]
_Role = Annotated[Literal["student", "teacher"], typer.Option("--role", help="Whose champion is served.")]
_MaxRank = Annotated[
    int | None, typer.Option("--max-rank", help="Largest LoRA rank of champions to come [the champion's].")
]
_WithBase = Annotated[bool, typer.Option("--with-base", help="Also serve the base, under its own name.")]


def serve(
    config: _Config = None,
    work_dir: _WorkDir = Path(".preceptor"),
    host: _Host = "127.0.0.1",
    port: _Port = 8000,
    api_key_env: _KeyEnv = None,
    student: _Student = None,
    poll: _Poll = None,
    role: _Role = "student",
    max_rank: _MaxRank = None,
    with_base: _WithBase = False,
) -> None:
    """Serve the registry's champion behind vLLM's OpenAI server, until Ctrl-C.

    Clients ask for the model `champion`. When the alias moves, the new version is loaded, proved against transformers
    and PEFT, and put in place without a restart; a version that fails stays out, and /health says why.
    """
    fields: dict[str, Any] = {"model": student}
    options = ServingOptions()
    if config is not None:
        from pipelines.config import RunConfig
        from pipelines.run_or_night import run_or_night

        run = run_or_night(config)
        recorded = run.student.model if role == "student" else run.teacher.model
        fields = {
            "model": student or recorded,
            "tracking": run.tracking,
            "device": run.device,
            "dtype": run.dtype,
        }
        options = run.serving if isinstance(run, RunConfig) else options
    told = {"poll_seconds": poll, "max_rank": max_rank, "with_base": with_base or None}
    try:
        options = ServingOptions.model_validate(
            options.model_dump() | {name: value for name, value in told.items() if value is not None}
        )
        checked = ServeConfig(
            work_dir=work_dir, role=role, host=host, port=port, api_key_env=api_key_env, options=options, **fields
        )
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, m['loc']))}: {m['msg']}, got {m['input']!r}" for m in error.errors()]
        raise ConfigError(f"serve: {'; '.join(mistakes)}") from error
    run_server(checked)


def run_server(config: ServeConfig) -> None:
    """Serve until a signal comes.

    Args:
        config: What is served.

    Raises:
        ConfigError: The key, the address or the base model is missing or refused; nothing was started.
        LineageError: The registry cannot be read.
        ServeError: There is no champion, it cannot be served, or vLLM died too often.
    """
    key = read_api_key(config.host, config.api_key_env)
    from pipelines.lineage_store import require_store
    from pipelines.serving.child import check_vllm

    check_vllm()
    require_store(config.tracking, config.work_dir)
    prepare_process()
    import asyncio

    from pipelines.serving.champions import Champions
    from pipelines.serving.server import Supervisor, base_of, bind, own_directory, serve_until_stopped
    from pipelines.serving.state import ServingState

    with bind(config.host, config.port) as listener:
        port: int = listener.getsockname()[1]
        with own_directory(config.work_dir, port) as directory:
            champions = Champions(config.tracking, config.work_dir, config.role, directory)
            version = champions.current()
            if version is None:
                raise _no_champion(champions.name)
            base = base_of(config, champions, version)
            first = champions.fetch(version)
            state = ServingState(config.role, base)
            state.wanted = version
            supervisor = Supervisor(config, state, champions, first, directory, _say)
            _say(f"starting vLLM with {base!r} for version {version} of {champions.name!r}; log: {supervisor.log}")

            def ready() -> None:
                _announce(config, state, port)

            asyncio.run(serve_until_stopped(supervisor, state, config, listener, key, ready))
    _say("stopped")


def _no_champion(name: str) -> Exception:
    from evaluation.errors import ServeError

    return ServeError(
        f"serve: no version of {name!r} has the alias `champion`. Give one the alias with `preceptor promote`, then "
        "start again."
    )


def _announce(config: ServeConfig, state: Any, port: int) -> None:
    """Print what is served, how to try it, and where it says how it is."""
    served, probe = state.current, state.current.probe
    shown = config.host if ":" not in config.host else f"[{config.host}]"
    address = f"http://{'127.0.0.1' if shown in ('0.0.0.0', '[::]') else shown}:{port}"
    header = f' -H "authorization: Bearer ${config.api_key_env}"' if config.api_key_env else ""
    body = '{"model": "champion", "prompt": "Question: Who are you?\\nAnswer:", "max_tokens": 32}'
    proof = f"{probe.equal} of {probe.prompts} probes equal, {probe.told_apart} unlike the base"
    _say(
        f"serving version {served.champion.version} ({served.champion.digest[:12]}) of the {config.role} on "
        f"{state.base!r}: {proof}\n"
        f"  model    champion at {address}/v1\n"
        f"  health   {address}/health\n"
        f"  try      curl {address}/v1/completions -H 'content-type: application/json'{header} -d '{body}'\n"
        "Press Ctrl-C to stop."
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
