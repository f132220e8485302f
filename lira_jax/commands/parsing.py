"""What the three scripts share: configuration and overrides, and errors as one line."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from lira_jax.errors import InputError
from lira_jax.interrupts import Stopped

T = TypeVar("T")

HELP = ("-h", "--help")


def parse(form: Callable[..., T], default: Any, description: str, arguments: Sequence[str]) -> T:
    """Parse a command line into a dataclass; flags are named as in the TOML files.

    Help and usage errors end the program as usual, with codes 0 and 2.
    """
    return tyro.cli(
        form,
        default=default,
        description=description,
        args=list(arguments),
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff, tyro.conf.ConsolidateSubcommandArgs),
    )


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of `--flag VALUE` or `--flag=VALUE`, read ahead of parsing; the last one counts."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.removeprefix(f"{flag}=")
    return found


def with_value(flag: str, arguments: Sequence[str]) -> list[str]:
    """The arguments with `--flag True` for `--flag` wherever no value follows, so that every flag
    takes one."""
    following = [*arguments[1:], None][: len(arguments)]
    return [
        f"{flag}=True"
        if argument == flag and (after is None or after.startswith("-"))
        else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def positional(arguments: Sequence[str]) -> Path | None:
    """The first argument that is neither a flag nor a flag's value, read ahead of parsing.

    Every flag but -h and --help takes one value.
    """
    value_next = False
    for argument in arguments:
        if value_next:
            value_next = False
        elif argument.startswith("-"):
            value_next = "=" not in argument and argument not in HELP
        else:
            return Path(argument)
    return None


def run_stage(stage: Callable[[Sequence[str]], None]) -> None:
    """Run one stage on the command line's arguments; end the program with its exit code.

    0: done. 2: bad input, one line on standard error. 130 and 143: stopped by Ctrl-C or SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack – or ×
            stream.reconfigure(errors="backslashreplace")
    # Of its own, since process 1 of a container ignores a signal that it has no handler for.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        stage(sys.argv[1:])
        sys.stdout.flush()
    except InputError as error:
        _refuse(str(error))
    except BrokenPipeError:  # whoever read the output, such as head, has gone
        _no_output()
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}; check this path and the disk, and run again")
    except MemoryError as error:
        _refuse(f"not enough memory ({error}); use fewer models or examples")
    except Stopped as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        _end("stopped", 130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(message: str) -> NoReturn:
    _end("error: " + " ".join(message.splitlines()), 2)


def _end(message: str, code: int) -> NoReturn:
    try:
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except BrokenPipeError:  # Ctrl-C ends `| tee` first
        _no_output()
    sys.exit(code)


def _no_output() -> None:
    """Let what is still to be written go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
