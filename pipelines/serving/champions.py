"""The registry as the server sees it: where the champion stands, and its files, checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.digests import digest_files
from evaluation.errors import PreceptorError, ServeError
from pipelines.config import TrackingConfig
from pipelines.lineage_store import lineage_errors, open_store
from pipelines.registry import ADAPTER_TAG, CHAMPION, PROMPTS_TAG, RUN_TAG, Registry, Role

if TYPE_CHECKING:
    from student.adapters import Adapter

_POLICY_FILE, _POLICY_FILES = "policy.json", ("adapter_model.safetensors", "optimizer.pt")
_MOST_PROMPTS = 16


@dataclass(frozen=True, slots=True)
class Champion:
    """A version whose files are here and are what was registered."""

    version: int
    digest: str
    """SHA-256 (64 hex digits) that it was registered with."""
    directory: Path
    """In PEFT's format."""
    rank: int
    modules: frozenset[str]
    """Ends of the names of its layers, such as `q_proj`."""
    base_digest: str
    """`model_digest` of its base; empty when it is not known."""
    prompts: tuple[str, ...]
    """Probes of its own; may be empty."""
    zero: bool
    """It changes nothing: one factor of each layer is zero."""


class Champions:
    """Follows one registered model; every call may wait for the store."""

    def __init__(self, tracking: TrackingConfig, work_dir: Path, role: Role, directory: Path) -> None:
        """Open the store.

        Args:
            tracking: Where the registry is.
            work_dir: Of the runs.
            role: Whose versions are followed.
            directory: For the files of versions.

        Raises:
            LineageError: The store cannot be used.
        """
        self._store = open_store(tracking, work_dir)
        self._registry = Registry(self._store, tracking.registry_prefix)
        self._role = role
        self._directory = directory

    @property
    def name(self) -> str:
        """Of the registered model."""
        return self._registry.name(self._role)

    def current(self) -> int | None:
        """Return the version that the champion's alias stands on; None when it stands on none.

        Raises:
            LineageError: The registry cannot be read.
        """
        return self._registry.aliases(self._role).get(CHAMPION)

    def recorded_model(self, version: int) -> str | None:
        """Return the base that the run of a version recorded; None when there is no record of it.

        Raises:
            LineageError: The registry cannot be read.
        """
        run_id = self._tags(version).get(RUN_TAG)
        if run_id is None:
            return None
        with lineage_errors(f"read the run {run_id!r}", self._store.uri):
            params: Mapping[str, str] = self._store.client.get_run(run_id).data.params
        return params.get(f"{self._role}.model")

    def fetch(self, version: int) -> Champion:
        """Return a version with its files in a directory of its own.

        Raises:
            LineageError: The registry cannot be read, or has no such version.
            ServeError: The files are damaged, are not what was registered, or cannot be served.
        """
        tags = self._tags(version)
        directory = self._registry.download(self._role, version, self._directory)
        try:
            return self._checked(version, directory, tags)
        except ServeError:
            self.discard(directory)
            raise
        except Exception as error:  # readers of damaged files raise whatever they like
            self.discard(directory)
            told = str(error) if isinstance(error, PreceptorError) else f"{type(error).__name__}: {error}"
            raise ServeError(f"serve: the files of version {version} of {self.name!r} are refused: {told}") from error

    def discard(self, directory: Path) -> None:
        """Remove the files of a version that is no longer served."""
        shutil.rmtree(self._directory / directory.relative_to(self._directory).parts[0], ignore_errors=True)

    def _tags(self, version: int) -> dict[str, str]:
        with lineage_errors(f"read version {version} of {self.name!r}", self._store.uri):
            return dict(self._store.client.get_model_version(self.name, str(version)).tags)

    def _checked(self, version: int, directory: Path, tags: Mapping[str, str]) -> Champion:
        from evaluation.engines.vllm_guards import check_adapter
        from student.adapters import load_adapter

        check_adapter(directory)
        adapter = load_adapter(directory)
        found = _policy_digest(directory) if self._role == "teacher" else adapter.digest
        expected = tags.get(ADAPTER_TAG, "")
        if found != expected:
            raise ServeError(
                f"serve: the files of version {version} of {self.name!r} have the digest {found[:12]!r}, and "
                f"{expected[:12]!r} was registered. They were changed or damaged; restore them, or promote another."
            )
        return Champion(
            version=version,
            digest=expected,
            directory=directory,
            rank=adapter.rank,
            modules=frozenset(name.rpartition(".")[2] for name in adapter.factors),
            base_digest=adapter.base_digest,
            prompts=_own_prompts(tags.get(PROMPTS_TAG)),
            zero=all(not a.any() or not b.any() for a, b in adapter.factors.values()),
        )


def zero_adapter(champion: Champion, directory: Path) -> Path:
    """Write an adapter that changes nothing, and return its directory.

    On a CPU, vLLM gives requests without an adapter that of others in the same batch; with this one the base is asked
    through an adapter, too.

    Args:
        champion: Whose layers it has.
        directory: Replaced if it exists.
    """
    import torch

    from student.adapters import Adapter, load_adapter, save_adapter

    layers = load_adapter(champion.directory).factors
    factors = {name: (torch.zeros(1, a.shape[1]), torch.zeros(b.shape[0], 1)) for name, (a, b) in layers.items()}
    adapter: Adapter = Adapter(factors, 1, 1.0, champion.base_digest)
    return save_adapter(adapter, directory)


def _policy_digest(directory: Path) -> str:
    """Return the digest that a teacher was saved with, if its files are those of then."""
    record: dict[str, Any] = json.loads((directory / _POLICY_FILE).read_text(encoding="utf-8"))
    if digest_files(directory, _POLICY_FILES) != record["files"]:
        raise ServeError(f"serve: the files of the teacher in {str(directory)!r} were changed or damaged")
    return str(record["digest"])


def _own_prompts(tag: str | None) -> tuple[str, ...]:
    """Return a version's own probes; a tag in another form, which anybody may have written, counts as none."""
    try:
        listed = json.loads(tag or "[]")
    except ValueError:
        return ()
    texts = listed if isinstance(listed, list) else []
    return tuple(text for text in texts if isinstance(text, str) and text.strip())[:_MOST_PROMPTS]
