"""What a person sees of a command: the one door of its output, and how it ends.

Nothing that a document or model wrote acts on a terminal or fails there: control characters, marks of direction and
characters that nobody sees are shown escaped, and so is what the terminal's encoding lacks. Only a rich console, whose
own control sequences must get through, writes past the door: `open_console`.
"""

from __future__ import annotations

import atexit
import gc
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TextIO, cast

from evaluation.common.errors import ConfigError, InputError, PreceptorError
from evaluation.common.storage import disk_problem
from pipelines.process import preceptor

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment

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
_AGAIN_SECONDS = 0.05


class Stopped(KeyboardInterrupt):
    """A signal that ends a command in order.

    It can be raised where it is lost: Python prints what a destructor, a weak reference's callback or a hook of the
    collector raises and goes on, and some libraries catch or clear every exception. The signal is sent again when the
    exception is freed without having ended the command.
    """

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        super().__init__(number)
        self.number = number

    def __del__(self) -> None:
        if _stops:
            # From another thread and a moment later: within a destructor it would be lost again.
            again = threading.Timer(_AGAIN_SECONDS, _send_again, (self.number,))
            again.daemon = True
            again.start()


def _send_again(number: int) -> None:
    if _stops and (main := threading.main_thread().ident) is not None:  # else the command has ended meanwhile
        signal.pthread_kill(main, number)


_stops: list[int] = []
"""Signals that have come to the command that runs and have not ended it yet."""


def _on_signal(number: int, _: object) -> None:
    """Raise Stopped; the handler of SIGINT and SIGTERM while a command runs."""
    _stops.append(number)
    raise Stopped(number)


def _tell_unraisable(tell: Callable[[Any], object], lost: Any) -> None:
    """Tell what was raised where nothing can be, but for a stop, which is sent again."""
    if not isinstance(lost.exc_value, Stopped):
        tell(lost)


def check_terminated() -> None:
    """Raise Stopped again where a signal has come: a library may have swallowed and kept the exception."""
    if _stops:
        raise Stopped(_stops[0])


@contextmanager
def stoppable() -> Iterator[None]:
    """End a command that is stopped by Ctrl-C or SIGTERM in order, and say how to go on; exit codes 130 and 143."""
    _stops.clear()
    with ExitStack() as stack:
        stack.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
        sys.unraisablehook = partial(_tell_unraisable, sys.unraisablehook)
        for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C also where a script has it ignored, in the background
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
