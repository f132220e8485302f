"""Work in threads: the same results in the same order, bounded, and given up at once."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lira_jax import workers


@pytest.fixture(params=[1, 2, 5])
def cores(request, monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: request.param)
    return request.param


@pytest.mark.parametrize("most", [None, 1, 3])
def test_results_come_in_the_order_of_the_items(cores, most):
    def slower_first(item):
        time.sleep(0.002 * (7 - item))
        return item * item

    assert list(workers.in_order(slower_first, range(7), most)) == [i * i for i in range(7)]
    assert list(workers.in_order(slower_first, [], most)) == []


def test_no_more_items_are_drawn_than_may_be_held(cores):
    drawn = []
    results = workers.in_order(lambda item: item, (drawn.append(i) or i for i in range(20)), 3)
    for taken, _ in enumerate(results):
        assert len(drawn) <= taken + 3


def test_work_within_work_shares_the_cores(cores):
    threads, lock, running = [], threading.Lock(), set()

    def inner(_):
        with lock:
            running.add(threading.get_ident())
            threads.append(len(running))
        time.sleep(0.005)
        with lock:
            running.discard(threading.get_ident())
        return 1

    def outer(_):
        return sum(workers.in_order(inner, range(6)))

    assert list(workers.in_order(outer, range(4), 2)) == [6] * 4
    assert max(threads) <= cores


def test_the_first_exception_is_the_callers(cores):
    def fail(item):
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(workers.in_order(fail, range(10)))

    def items():
        yield 1
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(workers.in_order(lambda item: item, items()))


def test_work_that_nobody_waits_for_ends_at_its_next_step(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 2)
    begun, steps = threading.Event(), []

    def long(_):
        def step(number):
            steps.append(number)
            begun.set()
            time.sleep(0.01)

        list(workers.in_order(step, range(1_000)))

    def items():
        yield 0
        begun.wait()
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(workers.in_order(long, items(), 2))
    assert time.monotonic() - start < 5
    after = len(steps)
    assert after < 900
    time.sleep(0.05)
    assert len(steps) == after


def test_one_core_is_a_loop_in_the_calling_thread(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 1)
    here = threading.get_ident()
    assert set(workers.in_order(lambda _: threading.get_ident(), range(3))) == {here}


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: {3, 4, 5}, raising=False)
    assert workers.cores() == 3
    monkeypatch.delattr(workers.os, "sched_getaffinity")
    monkeypatch.setattr(workers.os, "cpu_count", lambda: None)
    assert workers.cores() == 1
    assert np.sum(list(workers.in_order(abs, [-1, 2]))) == 3
