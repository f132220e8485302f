"""What the commands share: configuration and overrides, and errors as one line."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, TypeVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from lira_jax.commands.lists import LISTS
from lira_jax.errors import InputError
from lira_jax.interrupts import Stopped, StopRequest, asked_to_end

T = TypeVar("T")


def _switch(words: list[str]) -> bool:
    if words[1:] or words[:1] not in ([], ["True"], ["False"]):
        raise ValueError("give True or False, or nothing for True")
    return words != ["False"]


Switch = Annotated[
    bool,
    PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="[{True,False}]",
        instance_from_str=_switch,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""A flag that needs no value: `--flag` is `--flag True`."""


def parse(default: T, description: str, arguments: Sequence[str]) -> T:
    """Parse a command line into a dataclass; flags are named as in the TOML files.

    Help and usage errors end the program as usual, with codes 0 and 2. What is `tyro.MISSING` in
    the default must be given.
    """
    return tyro.cli(
        type(default),
        default=default,
        description=description,
        args=list(arguments),
        use_underscores=True,
        registry=LISTS,
        config=(tyro.conf.FlagConversionOff,),
    )


def parse_ahead(default: T, arguments: Sequence[str]) -> T:
    """Parse a command line to see which run or file its defaults come from; no help is shown."""
    return parse(default, "", [word for word in arguments if word not in ("-h", "--help")])


def _terminate(*_: object) -> None:
    if not asked_to_end():
        sys.exit(128 + signal.SIGTERM)


def run_stage(stage: Callable[[Sequence[str]], None]) -> None:
    """Run one stage on the command line's arguments; end the program with its exit code.

    0: done. 2: bad input, one line on standard error. 130 and 143: stopped by Ctrl-C or SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack – or ×
            stream.reconfigure(errors="backslashreplace")
    # Of its own, since process 1 of a container ignores a signal that it has no handler for.
    StopRequest.latest = None
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        _end(*_outcome(stage))
    finally:
        signal.signal(signal.SIGTERM, before)


def _outcome(stage: Callable[[Sequence[str]], None]) -> tuple[str, int]:
    """What is left to say on standard error, and the exit code."""
    try:
        stage(sys.argv[1:])
    except InputError as error:
        return f"error: {error}", 2
    except BrokenPipeError:  # whoever read the output, such as head, has gone
        return "", 1
    except OSError as error:
        if error.filename is None:
            raise
        advice = "check this path and the disk, and run again"
        return f"error: {error.filename}: {error.strerror}; {advice}", 2
    except MemoryError as error:
        return f"error: not enough memory ({error}); use fewer models or examples", 2
    except Stopped as error:
        return str(error), error.exit_code
    except KeyboardInterrupt:
        return "stopped", 130
    return "", 0


def _end(message: str, code: int) -> None:
    try:
        if message:
            print(" ".join(message.splitlines()), file=sys.stderr, flush=True)
        sys.stdout.flush()
    except BrokenPipeError:  # as when Ctrl-C ends `| tee` first; the rest goes nowhere
        code = code or 1
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
    if code:
        sys.exit(code)
