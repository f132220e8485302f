"""Progress of long work: one bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from tqdm import tqdm

LINE_SECONDS = 10.0


def say(text: str, stream: str = "stdout") -> None:
    """Print a line in the middle of long work, which must not end because nobody reads it."""
    with suppress(OSError, ValueError):
        print(text, file=getattr(sys, stream), flush=True)


class Progress:
    """A bar when standard error is a terminal; otherwise a line at most every 10 seconds.

    Args:
        total: units of work in all.
        done: units that an earlier call has done.
        title: what is going on, one word.
    """

    def __init__(self, total: int, done: int, title: str):
        self.total, self.first, self.done, self.title = total, done, done, title
        self.start = self.last_line = time.monotonic()
        self.fresh = True  # nothing counted yet
        terminal = sys.stderr.isatty()
        # tqdm's own rate and time left would count what an earlier call did; ours do not.
        layout = "{desc} {percentage:3.0f}%|{bar}| {postfix}"
        self.bar = (
            tqdm(total=total, initial=done, desc=title, bar_format=layout) if terminal else None
        )

    def advance(self, units: int, text: str) -> None:
        """Count units of work and show `text` with the time left."""
        self.done += units
        self.fresh = False
        now = time.monotonic()
        status = f"{text}, {duration(self.seconds_left(now))} left"
        if self.bar is not None:
            self.bar.set_postfix_str(status, refresh=False)
            self.bar.update(units)
        elif now - self.last_line >= LINE_SECONDS or self.done >= self.total:
            self.last_line = now
            say(f"{self.title}: {status}", "stderr")

    def take_back(self, units: int) -> None:
        """Count units no longer: they are to be done again."""
        self.done -= units
        if self.bar is not None:
            self.bar.update(-units)

    def warm_up(self, units: int) -> None:
        """Count units that took longer than others will, as the first do, and start the clock."""
        self.done += units
        self.first, self.start, self.fresh = self.done, time.monotonic(), False
        if self.bar is not None:
            self.bar.update(units)

    def rate(self, coming: int = 0) -> float:
        """Units per second since the start of this call, with those about to be counted."""
        return (self.done + coming - self.first) / max(time.monotonic() - self.start, 1e-9)

    def seconds_left(self, now: float) -> float:
        return (self.total - self.done) * (now - self.start) / max(self.done - self.first, 1)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """1:05 or 2:03:09."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
