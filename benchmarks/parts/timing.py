"""What the parts share of time, and of the best way found so far."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.parts import results
from benchmarks.parts.results import Found
from lira_jax.config import Experiment
from lira_jax.training_width import Way, in_way

CASES = {"speed_net": "speed_net", "resnet": "resnet8", "wide_resnet": "wrn28_2"}


class Clock:
    """Wall seconds of the last block."""

    seconds = 0.0

    def __enter__(self) -> Clock:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began


@contextmanager
def stopped_at(deadline: float) -> Iterator[None]:
    """Ask the stage that runs in this block to stop at its next safe point after a time, as a
    cluster does."""
    over = threading.Event()

    def ask() -> None:
        # Again and again: between two stages nobody listens.
        while not over.wait(max(1.0, deadline - time.monotonic())):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
        signal.signal(signal.SIGTERM, before)


def in_best_way(found: Sequence[Found], experiment: Experiment) -> Experiment:
    """The experiment with the fastest way of the sweep for its network and type settled; without
    a sweep, as it is, and the engine finds one."""
    train = experiment.train
    rows = [
        one
        for one in results.of(found, "fast", "train")
        if one["network"] == CASES[experiment.network.arch]
        and one["dtype"] == train.dtype
        and one["models_per_hour"]
        and (not train.group or one["width"] <= train.group)
    ]
    if not rows:
        return experiment
    best = max(rows, key=lambda row: row["models_per_hour"])
    return in_way(experiment, Way(best["width"], best["gradients"]))
