"""Ctrl-C and SIGTERM: a request that long work answers at its next safe point, or the end.

Within `stop_requests` the first signal is a request. Anywhere else, and on a second Ctrl-C, it is
the end: `KeyboardInterrupt` unwinds the main thread. That alone is not sure to end it: callbacks
may swallow exceptions, and a compiler hears nothing for a minute. So a thread, which the signal
itself wakes, ends the process where the main thread has not in `GRACE` seconds. And while modules
are imported nothing is at work, and libraries may crash on an exception: that ends at once.

Imports nothing heavy, so that it can be in place before all else is imported.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

GRACE = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Work was stopped by a signal at a safe point; what is done is saved."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signum


class StopRequest:
    """Whether a signal has asked for the end; a further Ctrl-C ends at once, a further SIGTERM,
    which clusters send, changes nothing."""

    signum: int = 0
    _told: bool = False

    def tell(self) -> None:
        """Say, once, what comes now."""
        if not self._told:
            self._told = True
            with suppress(OSError, ValueError, AttributeError):
                text = "stopping at the next safe point; Ctrl-C again stops at once, unsaved"
                print(text, file=sys.stderr, flush=True)

    def check(self, message: str) -> None:
        """Raise `Stopped` with this message if a signal has come."""
        if self.signum:
            raise Stopped(self.signum, message)


class _Signals:
    """What this process was sent.

    Attributes:
        block: the request of the block of `stop_requests` that the program is in.
        asked: whether a request was made, in this block or one before.
        ending: the signal that ends the program at once; 0 for none.
        heard: how often the main thread has handled each signal.
        own: whether the process is a command's, and may be ended.
    """

    def __init__(self, own: bool = False) -> None:
        self.own = own
        self.block: StopRequest | None = None
        self.asked = False
        self.ending = 0
        self.heard: Counter[int] = Counter()

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal, in the main thread."""
        self.heard[signum] += 1
        if self.block is not None and not self.block.signum:
            self.block.signum, self.asked = signum, True
            self.block.tell()
        elif signum == signal.SIGINT or not (self.asked or self.ending):
            self.ending = self.ending or signum
            if self.own and _is_importing(frame):
                _leave(self.ending)
            raise KeyboardInterrupt

    def overdue(self, sent: Counter[int]) -> int:
        """The signal that the main thread should have ended by, though it may not have heard it."""
        unheard = {signum: sent[signum] - self.heard[signum] for signum in SIGNALS}
        outside = self.block is None
        if self.ending:
            return self.ending
        if unheard[signal.SIGINT] > (0 if outside or self.asked else 1):
            return signal.SIGINT
        if unheard[signal.SIGTERM] > 0 and outside and not self.asked:
            return signal.SIGTERM
        if self.block is not None and any(count > 0 for count in unheard.values()):
            self.block.tell()
        return 0

    def watch(self, pipe: int) -> None:
        """End the process where the main thread does not."""
        sent: Counter[int] = Counter()
        while True:
            pending = bool(self.ending) or any(sent[s] > self.heard[s] for s in SIGNALS)
            if select.select([pipe], [], [], GRACE if pending else None)[0]:
                woken = os.read(pipe, 64)
                if not woken:
                    break
                sent.update(woken)
                # Only time tells a main thread that hears nothing from one about to.
            elif signum := self.overdue(sent):
                _leave(signum)
        os.close(pipe)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _leave(signum: int) -> NoReturn:
    """End the process as it is."""
    # Not by the streams: the main thread may be stuck with their locks.
    with suppress(OSError):
        os.write(2, b"stopped\n")
    os._exit(128 + signum)


_signals = _Signals()


def ending() -> int:
    """The signal that is ending this program at once; 0 for none."""
    return _signals.ending


@contextmanager
def ending_on_signals(last: bool) -> Iterator[None]:
    """Let signals end the program, from its first moment on.

    Args:
        last: ignore Ctrl-C afterwards, as the interpreter ends; otherwise all is as before.
    """
    global _signals
    _signals = _Signals(own=True)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(RuntimeError):  # too little memory for a thread: the handlers must do
        threading.Thread(target=_signals.watch, args=(reader,), daemon=True).start()
    before = [signal.getsignal(signum) for signum in SIGNALS]
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for signum in SIGNALS:
            signal.signal(signum, _signals.receive)
        yield
    finally:
        signal.set_wakeup_fd(woken)
        os.close(writer)
        for signum, handler in zip(SIGNALS, before, strict=True):
            ignored = last and signum == signal.SIGINT
            signal.signal(signum, signal.SIG_IGN if ignored else handler)
        _signals.own = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Collect SIGINT and SIGTERM for the duration of a block."""
    outer, request = _signals.block, StopRequest()
    _signals.asked = False
    before = [signal.signal(signum, _signals.receive) for signum in SIGNALS]
    _signals.block = request
    try:
        yield request
    finally:
        _signals.block = outer
        for signum, handler in zip(SIGNALS, before, strict=True):
            signal.signal(signum, handler)
