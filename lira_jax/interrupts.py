"""Ctrl-C and SIGTERM as a request that long work answers at its next safe point."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar

from lira_jax.progress import say


class Stopped(Exception):
    """Work was stopped by a signal at a safe point; what is done is saved."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signum


class StopRequest:
    """Whether a signal has asked for the end; a further Ctrl-C ends at once, a further SIGTERM,
    which clusters send, changes nothing."""

    signum: int = 0
    # Of the latest block: while its program ends, a further SIGTERM still changes nothing.
    latest: ClassVar[StopRequest | None] = None

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if self.signum:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signum = signum
        text = "stopping at the next safe point; Ctrl-C again stops at once, unsaved"
        say(text, "stderr")

    def check(self, message: str) -> None:
        """Raise `Stopped` with this message if a signal has come."""
        if self.signum:
            raise Stopped(self.signum, message)


def asked_to_end() -> bool:
    """Whether a signal came in the latest block of `stop_requests`, and the program is ending."""
    return StopRequest.latest is not None and bool(StopRequest.latest.signum)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Collect SIGINT and SIGTERM for the duration of a block."""
    request = StopRequest.latest = StopRequest()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(signum, request._receive) for signum in signals]
    try:
        yield request
    finally:
        for signum, handler in zip(signals, before, strict=True):
            signal.signal(signum, handler)
