"""Progress: plain lines where output is no terminal, a bar on one."""

from __future__ import annotations

import io
import sys

import pytest

from lira_jax import progress
from lira_jax.progress import Progress, duration


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def shown(monkeypatch, terminal):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_without_a_terminal_a_line_comes_at_most_every_ten_seconds_and_at_the_end(
    clock, monkeypatch
):
    stream = shown(monkeypatch, terminal=False)
    bar = Progress(100, 0, "train")
    for epoch in range(1, 101):
        clock.now += 1
        bar.advance(1, f"epoch {epoch}/100")
    bar.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train: epoch 10/100, 1:30 left"
    assert lines[-1] == "train: epoch 100/100, 0:00 left"
    assert len(lines) == 10
    assert "\r" not in stream.getvalue()


def test_what_warms_up_counts_as_done_but_not_towards_the_rate(clock, monkeypatch):
    stream = shown(monkeypatch, terminal=False)
    bar = Progress(101, 0, "train")
    assert bar.fresh
    clock.now += 500
    bar.warm_up(1)
    assert not bar.fresh
    clock.now += 10
    assert bar.rate(20) == 2
    bar.advance(20, "step 21")
    assert stream.getvalue() == "train: step 21, 0:40 left\n"


def test_on_a_terminal_one_bar_moves(monkeypatch):
    stream = shown(monkeypatch, terminal=True)
    bar = Progress(4, 1, "score")
    for _ in range(3):
        bar.advance(1, "3 queries/s")
    bar.close()
    assert stream.getvalue().count("\n") == 1
    last = stream.getvalue().split("\r")[-1]
    assert last.startswith("score 100%|")
    assert "3 queries/s, 0:00 left" in last


def test_rate_and_time_left_count_this_call_only(clock, monkeypatch):
    shown(monkeypatch, terminal=False)
    bar = Progress(100, 80, "train")
    clock.now += 5
    bar.advance(10, "")
    assert bar.rate() == 2
    assert bar.seconds_left(clock.now) == 5


def test_nothing_to_do_is_no_mistake(clock, monkeypatch):
    stream = shown(monkeypatch, terminal=False)
    bar = Progress(0, 0, "train")
    assert bar.rate() == 0
    assert bar.seconds_left(clock.now) == 0
    bar.close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (0.4, "0:00"), (9, "0:09"), (59.6, "1:00"), (65, "1:05"), (3599.7, "1:00:00"),
     (7389, "2:03:09"), (360000, "100:00:00")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text
