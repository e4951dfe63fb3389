"""Progress on long work: a bar on a terminal, plain lines with the time elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Reporter:
    """Says what is going on; a context manager."""

    _QUIET_SECONDS = 20.0
    """Without a terminal, the shortest time between two lines about single units."""

    def __init__(self, console: Console, total: int) -> None:
        """Report on `total` units of work to `console`."""
        self.console = console
        self._total = total
        self._count = 0
        self._started = self._spoke = time.monotonic()
        self._doing = ""
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("starting", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        elapsed = time.monotonic() - self._started
        self._spoke = time.monotonic()
        self._progress.console.print(f"[dim]{_clock(elapsed)}[/dim] {line}", highlight=False, soft_wrap=True)

    def begin(self, doing: str) -> None:
        """Name the unit that starts now."""
        self._doing = doing
        self._progress.update(self._bar, description=doing)
        if not self.console.is_terminal and time.monotonic() - self._spoke > self._QUIET_SECONDS:
            self.say(f"{doing} (unit {self._count + 1} of {self._total})")

    def done(self) -> None:
        """Count a unit."""
        self._count += 1
        self._progress.update(self._bar, completed=min(self._count, self._total))


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}"
