"""How every command begins and ends.

Begins: signals end it from the first moment on, so nothing heavy is imported before. Ends: in one
line on standard error and an exit code.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Any

from lira_jax.commands.streams import Shown, shown
from lira_jax.errors import InputError, one_line
from lira_jax.interrupts import Stopped, ending, ending_on_signals

# How libraries word it where memory, or address space (`ulimit -v`), ends; in lower case.
_NO_MEMORY = (
    "resource_exhausted", "out of memory", "cannot allocate memory", "can't start new thread",
    "failed to map segment", "bad_alloc", "unable to allocate", "can't allocate",
)  # fmt: skip


class Ended(Exception):
    """A command that has said all it has to say ends with this code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


def run(name: str) -> None:
    """Run a command on the command line's arguments, and end the program unless all is well.

    A program that fails ends without the interpreter's own end: XLA's threads may still compile
    then, and would crash on what that takes from them. Everything is flushed and all files are
    closed by then; what is left out is what libraries do at exit.

    Args:
        name: as `run_stage` takes it.
    """
    try:
        code = run_stage(name, last=True)
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code and "jax" in sys.modules:
        for stream in (sys.stdout, sys.stderr):
            Shown(stream).flush()
        os._exit(code)
    if code:
        sys.exit(code)


def run_stage(name: str, *, last: bool = False) -> int:
    """Run one stage on the command line's arguments.

    Args:
        name: `package.module:function`, imported once signals are handled.
        last: the program ends after it, and no Ctrl-C disturbs that.

    Returns:
        The exit code. 0: done. 1: done, but a check failed or the output was lost. 2: bad input,
        one line on standard error. 130 and 143: stopped by Ctrl-C or SIGTERM.
    """
    with shown() as streams:
        try:
            with ending_on_signals(last):
                return _end(*_outcome(name), *streams)
        except KeyboardInterrupt:  # just before the stage, or just after
            return _end("stopped", 128 + (ending() or signal.SIGINT), *streams)


def _outcome(name: str) -> tuple[str, int]:
    """What is left to say on standard error, and the exit code."""
    try:
        stage: Callable[[Sequence[str]], None] = resolve_name(name)
        stage(sys.argv[1:])
    except BaseException as error:
        # Libraries turn KeyboardInterrupt into errors of theirs.
        if (signum := ending()) and not isinstance(error, Stopped):
            return "stopped", 128 + signum
        outcome = _of_error(error)
        if outcome is None:
            raise
        return outcome
    return "", 0


def _of_error(error: BaseException) -> tuple[str, int] | None:
    """The last line and exit code of what was raised; None for a mistake of ours."""
    match error:
        case Ended():
            return "", error.code
        case InputError():
            return f"error: {error}", 2
        case Stopped():
            return str(error), error.exit_code
        case KeyboardInterrupt():
            return "stopped", 130
        case SystemExit():  # commands end by `Ended`
            advice = "take its exit out of the code that the configuration names"
            return f"error: SystemExit({error.code}): something ended the program; {advice}", 2
        case OSError() if error.filename is not None:
            advice = "check this path and the disk, and run again"
            return f"error: {error.filename}: {error.strerror}; {advice}", 2
    if _is_for_lack_of_memory(error):
        advice = "use fewer models or examples, or raise the limit (ulimit -v)"
        return f"error: not enough memory ({one_line(error)}); {advice}", 2
    return None


def _is_for_lack_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        error = error.__cause__ or error.__context__
    return False


def _end(message: str, code: int, out: Shown, err: Shown) -> int:
    """Say the last line, where a stream is left to say it on; the exit code."""
    out.flush()
    if message:
        _say(" ".join(message.splitlines()), err, out)
    for name, stream, other in (("output", out, err), ("error", err, out)):
        if stream.lost is None:
            continue
        code = code or 1
        if not isinstance(stream.lost, BrokenPipeError):  # whoever read it, such as head, has gone
            reason: Any = getattr(stream.lost, "strerror", None) or stream.lost
            _say(
                f"error: standard {name}: cannot be written ({reason}); what was to be read there "
                "is lost, what is in files is not: give it a terminal, a file with room or "
                "/dev/null",
                other,
            )
    return code


def _say(line: str, *streams: Shown) -> None:
    """Write a line on the first of these that takes it."""
    for stream in streams:
        stream.write(line + "\n")
        stream.flush()
        if stream.lost is None:
            return
