"""Settings that all flows share, and how a YAML file becomes a configuration: validated as a whole, before any work."""

from __future__ import annotations

import ast
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from evaluation.common.data import (
    Frozen,
    derive_seed,
    digest_json,
    dotted_keys,
    grouped,
    models_in,
    reason,
    sections_at,
)
from evaluation.common.errors import ConfigError
from evaluation.common.gguf import ModelName
from evaluation.engines.vllm import VllmOptions
from evaluation.exact_match import AnswerFormat, FormatName
from evaluation.graders import DomainGrading, GraderConfig
from pipelines.process import find_config, preceptor
from student.config import UpdateRecipe
from teacher.config import TeacherConfig

QuestionSet = Literal["rewards", "comparison", "paraphrases"]
"""Which questions of a task are asked: those of the rewards, the held-out phrasings, or the latter in other words."""

_Config = TypeVar("_Config", bound=BaseModel)


class StudentModel(Frozen):
    """The frozen base of a student."""

    model: ModelName
    """Directory, hub id, GGUF file (also as `{gguf: FILE}`), `smollm2-135m` after `preceptor get-model`, or
    `micro-student` for the one that ships with the package."""


class Asking(Frozen):
    """The form in which a student is trained and asked."""

    format: FormatName = "auto"
    """How questions are put: `plain`, `few-shot` (behind worked examples), `chat` (the tokenizer's chat template), or
    `auto`: that one of them in which the base answers most of 24 general questions; `plain` where `answer_format` is
    set."""
    answer_format: AnswerFormat = AnswerFormat()
    """The wording, for `plain` and `few-shot`."""

    @property
    def written(self) -> AnswerFormat | None:
        """The form where the configuration alone says it; None where the tokenizer or the base does."""
        own = self.format == "auto" and self.answer_format != AnswerFormat()
        return self.answer_format if own or self.format == "plain" else None


class StudentConfig(StudentModel, Asking):
    """The student: a frozen base, and the recipe by which self-edits update LoRA adapters on it."""

    update: UpdateRecipe = UpdateRecipe()
    quantization: Literal["none", "nf4"] = "none"
    """`nf4` keeps the weights of the base's linear layers in 4 bits (QLoRA, arXiv 2305.14314), by bitsandbytes; the
    adapters on it stay in float32."""
    bank_slots: int = Field(default=32, ge=1, le=1024)
    """Adapters trained at once at most, memory permitting, in [1, 1024]."""
    bank_memory_gb: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Memory for slots and activations, the model left out, in GB (10^9 bytes); None is a share of what is free."""


class GradingConfig(Frozen):
    """Free-text answers and their grader, in place of exact match by one teacher-forced pass.

    Rewards by the probability of the gold answer need no text: then only the comparison is graded.
    """

    grader: GraderConfig
    """Decides whether an answer is right; an answer without a verdict counts neither as right nor as wrong."""
    engine: Literal["bank", "vllm"] = "bank"
    """What generates the answers: the bank that trained the adapters, or vLLM with an adapter for each request."""
    max_new_tokens: int = Field(default=32, ge=1, le=4096)
    """Longest answer in tokens, in [1, 4096]; the answer is the first line that is not blank."""
    vllm: VllmOptions = VllmOptions()
    """For the engine `vllm`; a self-edit with a higher LoRA rank than the recipe's has no score there."""


def for_documents(value: GradingConfig | None) -> GradingConfig | None:
    """Return the grading of answers about documents; ValueError for the grader of a domain, which they have none of."""
    if value is not None and isinstance(value.grader, DomainGrading):
        raise ValueError("grader: got type domain, allowed are exact, gold-token-recall, token-f1, behaviour and judge")
    return value


class TrackingConfig(Frozen):
    """Where the lineage goes."""

    uri: str | None = None
    """MLflow tracking URI; None is that of `MLFLOW_TRACKING_URI`, or else an SQLite file in the work directory."""
    experiment: str = Field(default="preceptor/train-teacher", pattern=r"^[A-Za-z0-9_-]+(/.+)?$")
    """MLflow experiment, `<prefix>/<name>`; registered models are called `<prefix>-teacher` and `<prefix>-student`."""

    @property
    def registry_prefix(self) -> str:
        """What precedes the role in the names of registered models."""
        return self.experiment.partition("/")[0]

    @property
    def location(self) -> str | None:
        """The tracking URI, if one is set here or in the environment."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or None


class Settings(Frozen):
    """What every flow is given: its name, seed, device and where its lineage goes."""

    command: ClassVar[str] = ""
    """The command whose files these are; empty for any."""
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Shown in MLflow and Prefect; letters, digits, `_`, `.` and `-`, at most 64."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Every random choice derives from it, in [0, 2^31)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the models run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen bases."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of torch, in [1, 1024]; None is one for each core."""
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _own_experiment(cls, value: Any) -> Any:
        """Keep the command's own experiment where only a part of `tracking` is given."""
        tracking = value.get("tracking") if isinstance(value, Mapping) else None
        if not cls.command or not isinstance(tracking, Mapping):
            return value
        return {**value, "tracking": {"experiment": f"preceptor/{cls.command}", **tracking}}

    def seed_of(self, *purpose: str | int) -> int:
        """Return the seed of one purpose."""
        return derive_seed(self.seed, *purpose)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that may change a result; tracking and the limits of reading files are left out."""
        return digest_json(self.model_dump(mode="json", exclude={"tracking", "limits"}))

    def read_data(self) -> object:
        """Read the data that a flow needs; raises InputError or ConfigError if they are refused."""


class Graded(Frozen):
    """Settings of a flow in which students answer."""

    grading: GradingConfig | None = None
    """None: an answer is right if greedy decoding writes the gold answer, token by token."""


class LoopSettings(Settings, Graded):
    """Settings of a flow in which a teacher's self-edits update a student."""

    teacher: TeacherConfig
    student: StudentConfig

    def grading_for(self, questions: QuestionSet) -> GradingConfig | None:
        """Return how the answers to some questions are graded; None where no text is needed."""
        needless = questions == "rewards" and self.teacher.reward.metric in ("probability", "token_probability")
        return None if needless else self.grading


class AnyFlow(LoopSettings):
    """What the files of all flows share, for commands on the store and the student; other sections are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file, not validated; raises ConfigError if it is no mapping of settings."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error}. Give the path of a YAML file.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config {str(path)!r}: got {type(content).__name__}, allowed is a mapping of settings.")
    return content


def command_of(content: Mapping[str, Any]) -> str:
    """Return the command that a file's content is for, by the sections that only its files have; empty if by none."""
    if "general" in content:
        return "adapt-student"
    if "corpus" in content:
        return "write-corpus"
    if isinstance(content.get("student"), str) and "teacher" not in content:
        return "check-regression"
    return "train-teacher" if {"data", "loop", "comparison"} & content.keys() else ""


def load(path: Path, kind: type[_Config], overrides: Sequence[str] = ()) -> _Config:
    """Return the configuration in a YAML file, with overrides such as `loop.rounds=3` applied, whose values are YAML.

    A file that is not there is looked for among the packaged ones (`find_config`).

    Raises:
        ConfigError: The file cannot be read or is refused; all mistakes are listed at once.
    """
    path = find_config(path)
    content = read_config(path)
    own, meant = getattr(kind, "command", ""), command_of(content)
    if own and meant and own != meant:
        arguments = ("DOCUMENTS", "--config", path) if meant == "write-corpus" else (path,)
        raise ConfigError(
            f"config {str(path)!r} is for {meant}, not for {own}. To run it: {preceptor(meant, *arguments)}\n"
            "Nothing was started."
        )
    for override in overrides:
        _apply(content, override)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_explain(path, kind, error)) from error


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one dotted key of `content` in place."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override!r}: allowed is a dotted key, `=` and a value, such as loop.rounds=3.")
    *parents, last = key.split(".")
    place: Any = content
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is not a section of the configuration.")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {error}") from error


def _explain(path: Path, kind: type[BaseModel], error: ValidationError) -> str:
    """Return one message that lists every mistake by its dotted key; equal ones share a line."""
    found, near = [], list(dotted_keys(kind))
    for mistake in error.errors(include_url=False):
        place = ".".join(map(str, sections_at(kind, mistake["loc"])[1])) or "(whole file)"
        text = reason(mistake, kind, near=() if place in near else near)  # of a section of another type
        text = f":{text}" if mistake["type"] == "value_error" else text
        known = mistake["type"] in ("missing", "extra_forbidden") or isinstance(mistake["input"], Mapping)
        known = known or "got " in text
        found.append((place, text if known else f"{text}, got {mistake['input']!r}"))
    lines = []
    for place, text in grouped(found):
        several = text.replace(" is missing", " are missing").replace(" is an unknown key", " are unknown keys")
        lines.append(f"  - {place}{several if ', ' in place else text}")
    count = f"{len(found)} mistake{'s' if len(found) > 1 else ''}"
    return f"config {str(path)!r} has {count}:\n" + "\n".join(lines) + "\nNothing was started."


def to_yaml(config: BaseModel) -> str:
    """Return the resolved configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


Schemas = Mapping[str, type[BaseModel]]
"""Schemas of files by the command that reads them."""
TAGS = ("type", "algorithm")
"""Fields that select the kind of a section."""
_INTRO = """\
# Configuration

{} settings, as `preceptor config reference` prints them. A key that is not listed is refused. A section that comes in
several kinds has a table for each. `configs/` holds a complete file for each setup; `--set loop.rounds=3` overrides one
setting on the command line.
"""
_TYPES = {NoneType: "none", bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def sections(schemas: Schemas) -> dict[type[BaseModel], list[str]]:
    """Return each model of the schemas with the keys under which it occurs; of a whole file its command."""
    found: dict[type[BaseModel], list[str]] = {}

    def visit(model: type[BaseModel], key: str, prefix: str = "") -> None:
        keys = found.setdefault(model, [])
        keys += [key] if key not in keys else []
        for name, field in model.model_fields.items():
            for each in models_in(field.annotation):
                visit(each, prefix + name, f"{prefix}{name}.")

    for command, schema in schemas.items():
        visit(schema, command)
    return found


def settings(schemas: Schemas) -> dict[tuple[str, str], tuple[FieldInfo, str]]:
    """Return field and docstring of each setting by the class that defines it and its name; inherited ones count once.

    A setting holds a value: sections, the fields that select their kind, and pins, which a command writes, are none.
    """
    return {
        (_definitions(model, name)[-1].__name__, name): (field, docstring(model, name))
        for model, keys in sections(schemas).items()
        for name, field in model.model_fields.items()
        if not any(models_in(field.annotation)) and name not in TAGS and keys != ["pins"]
    }


def docstring(model: type[BaseModel], name: str) -> str:
    """Return the docstring of a field, or else of the field that it overrides or the section that it holds."""
    for base in _definitions(model, name):
        (found,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(found, ast.ClassDef)
        for field, text in zip(found.body, found.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == name and isinstance(text, ast.Expr):
                return " ".join(str(ast.literal_eval(text.value)).split())
    held = list(models_in(model.model_fields[name].annotation))
    return " ".join((inspect.getdoc(held[0]) or "").partition("\n\n")[0].split()) if len(held) == 1 else ""


def _definitions(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    return [base for base in model.__mro__ if name in inspect.get_annotations(base)]


def reference(schemas: Schemas) -> str:
    """Return the page in Markdown: a table for each section, with the type, default and range of each field."""
    page = [_INTRO.format(len(settings(schemas)))]
    for model, keys in sections(schemas).items():
        tags = {tag: get_args(model.model_fields[tag].annotation)[0] for tag in TAGS if tag in model.model_fields}
        kind = "".join(f" of `{tag}: {value}`" for tag, value in tags.items())
        page += [f"## {', '.join(f'`{key}`' for key in keys)}{kind}\n\n{inspect.getdoc(model)}\n"]
        rows = [_cells(model, name, field) for name, field in model.model_fields.items() if name not in TAGS]
        page += ["| field | type | default | range | meaning |\n|---|---|---|---|---|"] if rows else []
        page += [f"| {' | '.join(row)} |" for row in rows] + [""]
    return "\n".join(page)


def _cells(model: type[BaseModel], name: str, field: FieldInfo) -> tuple[str, ...]:
    bounds = [text.format(getattr(m, key)) for m in field.metadata for key, text in _BOUNDS.items() if hasattr(m, key)]
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    default = "its own" if value is not None and any(models_in(field.annotation)) else f"`{json.dumps(value)}`"
    default = "required" if field.is_required() else default
    return f"`{name}`", _type(field.annotation), default, ", ".join(bounds), docstring(model, name)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if next(models_in(annotation), None) is not None:
        return "list of sections" if origin is tuple else "section"
    if origin in (Union, UnionType):
        return " or ".join(map(_type, arguments))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (tuple, dict):
        return f"{'list' if origin is tuple else 'mapping'}, {_type(arguments[0 if origin is tuple else 1])}"
    return _type(arguments[0]) if origin is Annotated else _TYPES.get(annotation, "any")
