"""A surface whose reading does what the fuzzer has to notice, one kind a number."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.fuzz.toolbox import REFUSE, SAME, Spoilt, Surface, Values

SEEN = (
    "undisturbed", "raises", "hangs", "hangs without signals", "takes memory", "dies",
    "accepts what is bad", "reads it wrong",
)  # fmt: skip


def make(folder: Path) -> None:
    (folder / "how").write_text(SEEN[0])


def spoil(_: object, folder: Path, number: int) -> Spoilt:
    (folder / "how").write_text(SEEN[number])
    return Spoilt(SEEN[number], REFUSE if SEEN[number] == "accepts what is bad" else SAME)


def read(folder: Path) -> Values:
    how = (folder / "how").read_text()
    if how == "raises":
        raise KeyError("of a library")
    if how in ("hangs without signals", "takes memory"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    if how.startswith("hangs"):
        time.sleep(100)
    elif how == "takes memory":
        _ = [b"x" * 10**8 for _ in range(25)]
        time.sleep(100)
    elif how == "dies":
        os._exit(0)
    return {"value": 1 if how == "reads it wrong" else 0}


def surfaces() -> dict[str, Surface]:
    """One for each kind, so that one input of each suffices."""
    return {
        how: Surface(how, 1, make, lambda random, folder, n=n: spoil(random, folder, n), read)
        for n, how in enumerate(SEEN)
    }
