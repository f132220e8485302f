"""Standard output and standard error, of which every command writes to nothing else.

What is shown may hold names from files of strangers, so nothing that would steer a terminal gets
through. And the work does not end because nobody can read of it: what cannot be written is counted
as lost, and the command says so at its end. Imports nothing heavy.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lira_jax.errors import visible

# What progress bars begin a line anew with, and go back up with; neither is ever in a name.
_BAR = re.compile(r"\r|\n*(?:\x1b\[A)+$")


class _Closed(io.TextIOBase):
    """A stream that the program was started without."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class Shown:
    """A stream that text goes through on its way to a reader.

    Attributes:
        lost: why something could not be written; None if all was.
    """

    def __init__(self, stream: Any):
        self.stream = _Closed() if stream is None else stream
        self.lost: Exception | None = None
        self.coloured = False
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack – or ×
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write text, or count it as lost."""
        bar = _BAR.match(text)
        begun = bar.end() if bar else 0
        clean = text if self.coloured else text[:begun] + visible(text[begun:], keep="\n\t")
        self._try("write", clean)
        return len(text)

    def flush(self) -> None:
        """Flush, or count what is left as lost."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether a person is reading."""
        return bool(self.stream.isatty())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, name: str, *words: str) -> None:
        if self.lost is not None:
            return
        try:
            getattr(self.stream, name)(*words)
        except (OSError, ValueError) as error:  # ValueError: closed
            self.lost = error
            # What is left in its buffer would be tried again when the program ends.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


@contextmanager
def shown() -> Iterator[tuple[Shown, Shown]]:
    """Let all that is printed go through: standard output and standard error."""
    # A file that is opened next must not take the number of a stream that is closed.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    out, err = Shown(sys.stdout), Shown(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def in_colours() -> Iterator[None]:
    """Let help and usage errors be in colours: they show the user's own words alone."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, Shown)]
    for stream in streams:
        stream.coloured = True
    try:
        yield
    finally:
        for stream in streams:
            stream.coloured = False
