"""`preceptor serve`: the command. Nothing heavy is imported before its arguments are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from pipelines.process import FlowFile, RoleOption, WorkDir


def serve(
    config: FlowFile = None,
    work_dir: WorkDir = Path(".preceptor"),
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the clients' key, or a line `NAME KEY` for each.")
    ] = None,
    api_keys: Annotated[Path | None, typer.Option(help="File with a line `NAME KEY` for each client.")] = None,
    student: Annotated[
        str | None, typer.Option(help="Directory, hub name or micro-student [the champion's own base].")
    ] = None,
    role: RoleOption = "student",
    poll: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks at the registry.")] = 5.0,
    variants: Annotated[
        str, typer.Option(help="Models: champion, previous (where a rollback leads) and base, with commas between.")
    ] = "champion",
    engine: Annotated[
        Literal["auto", "vllm", "embedded"], typer.Option(help="What computes; auto is vLLM where it is installed.")
    ] = "auto",
    learn: Annotated[
        bool, typer.Option("--learn", help="Keep chats and feedback for the next nights, redacted; see docs/inbox.md.")
    ] = False,
    retention_days: Annotated[int, typer.Option(min=1, max=3650, help="Days for which --learn keeps a chat.")] = 30,
    idle_minutes: Annotated[
        float | None,
        typer.Option(min=0.01, max=1440, help="Without a request for so long, run the night of --config."),
    ] = None,
    slow_seconds: Annotated[
        float,
        typer.Option(min=0.01, max=3600, help="A request that takes longer stops it until the next idle time."),
    ] = 5.0,
    vllm: Annotated[
        list[str] | None,
        typer.Argument(help="Arguments of vLLM, after `--`, such as --max-lora-rank for higher ranks to come."),
    ] = None,
) -> None:
    """Serve the registry's champion as the model `champion` of an OpenAI-compatible server, until Ctrl-C.

    A student's chats are answered as by `preceptor ask`, from weights or memory; /v1/completions is the engine's own.
    When the alias moves, the new version is loaded, proved against transformers and PEFT, and put in place without a
    restart; a version that fails stays out, and /health says why.
    """
    from pipelines.adapt_student.config import NightConfig
    from pipelines.ask.answers import asked_flow
    from pipelines.serve.idle import IdleWindow
    from pipelines.serve.server import ServeOptions, run_server
    from pipelines.serve.versions import Variant
    from pipelines.settings import TrackingConfig, load

    if learn and role != "student":
        raise typer.BadParameter("is for a student's chats; leave it out, or --role", param_hint="--learn")
    if idle_minutes is not None and (config is None or role != "student"):
        raise typer.BadParameter("needs the configuration of a student's night: --config", param_hint="--idle-minutes")
    named: dict[str, Variant] = {name: name for name in get_args(Variant)}
    if unknown := sorted({*variants.split(",")} - {*named}):
        raise typer.BadParameter(f"got {unknown}, allowed are {', '.join(named)}", param_hint="--variants")
    keys, chosen = (api_key_env, api_keys), tuple(named[name] for name in variants.split(","))
    options = ServeOptions(role, host, port, *keys, poll, chosen, student, engine=engine)
    options = options._replace(arguments=tuple(vllm or ()), learn_days=retention_days if learn else None)
    tracking = TrackingConfig()
    if config is not None:
        flow, asking = asked_flow(config)
        base = student or (flow.student if role == "student" else flow.teacher).model
        tracking, options = flow.tracking, options._replace(base=base, device=flow.device, dtype=flow.dtype)
        options = options._replace(asking=asking)
        if idle_minutes is not None:
            load(config, NightConfig)
            options = options._replace(idle=IdleWindow(config, 60 * idle_minutes, slow_seconds))
    run_server(options, tracking, work_dir)
