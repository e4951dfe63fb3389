"""What a person sees of a command: the one door of its output, and how it ends.

Nothing that a document or model wrote acts on a terminal or fails there: control characters, marks of direction and
characters that nobody sees are shown escaped, and so is what the terminal's encoding lacks. Only a rich console, whose
own control sequences must get through, writes past the door: `open_console`.
"""

from __future__ import annotations

import atexit
import gc
import logging
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO, cast

from evaluation.common.errors import ConfigError, InputError, PreceptorError
from evaluation.common.storage import disk_problem
from pipelines.process import preceptor

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment

LOG = logging.getLogger("preceptor")
"""What a run says beside the screen, for whoever keeps its log, such as Prefect."""
LOG.addHandler(logging.NullHandler())
LOG.setLevel(logging.INFO)
LOG.propagate = False  # the screen has it

_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str, kept: str = "") -> str:
    """Return a text whose characters that act on a terminal or are not seen, but those in `kept`, are escaped."""

    def escaped(found: re.Match[str]) -> str:
        return found[0] if found[0] in kept else found[0].encode("unicode_escape").decode()

    return _UNSEEN.sub(escaped, text)


class _Door:
    """A text stream that shows escaped what is not printable; line ends and tabs stay."""

    def __init__(self, stream: TextIO) -> None:
        self.plain = stream

    def write(self, text: str) -> int:
        self.plain.write(printable(text, "\n\t"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # a way past the door, which click takes where the encoding is ASCII
            raise AttributeError(name)
        return getattr(self.plain, name)


def guard_output() -> None:
    """Put the door before standard output and error, unless it is there."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Door):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, cast("TextIO", _Door(stream)))


def open_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output or error that shows texts as the door does."""
    stream = sys.stderr if stderr else sys.stdout
    return _console_class()(file=getattr(stream, "plain", stream))


@cache
def _console_class() -> type[Console]:
    from rich.console import Console

    class GuardedConsole(Console):
        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            shown = (s if s.control else s._replace(text=printable(s.text, "\n\t")) for s in buffer)
            return super()._render_buffer(shown)

    return GuardedConsole


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the process with a message for the project's own errors; exit code 2: misuse, nothing was started; else 1."""
    atexit.register(gc.freeze)  # Python's last collection, over MLflow's modules, would take a second of CPU time
    try:
        yield
    except PreceptorError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2 if isinstance(error, ConfigError | InputError) else 1)
    except Exception as error:
        if (problem := disk_problem(error)) is None:
            raise
        sys.stderr.write(f"{problem}\n")
        sys.exit(1)


STOPPED = {130: "Ctrl-C", 143: "SIGTERM"}
"""Exit codes of a command that was stopped, and by what."""


_stops: list[int] = []
"""Signals that have come to the command that runs and have not ended it yet."""


def _on_signal(number: int, _: object) -> None:
    """Raise KeyboardInterrupt; the handler of SIGINT and SIGTERM while a command runs."""
    _stops.append(number)
    raise KeyboardInterrupt


def check_terminated() -> None:
    """Raise KeyboardInterrupt again where a signal has come: a library may have swallowed the exception."""
    if _stops:
        raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[None]:
    """End a command that is stopped by Ctrl-C or SIGTERM in order, and say how to go on; exit codes 130 and 143.

    A signal that is ignored stays so: a script starts a command in the background with Ctrl-C ignored.
    """
    _stops.clear()
    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                with suppress(ValueError):  # signals are for the main thread alone
                    stack.callback(signal.signal, number, signal.signal(number, _on_signal))
        try:
            yield
            check_terminated()
        except BaseException:
            if not _stops:
                raise
            _end_stopped()  # whatever was raised: what a stop interrupts can fail on its way out


def _end_stopped() -> None:
    code = 128 + _stops[0]
    _stops.clear()
    stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # a bar that still runs would wrap the command
    stream.write(f"\nStopped by {STOPPED[code]}. What was done is kept; to go on: {preceptor(*sys.argv[1:])}\n")
    sys.exit(code)
