from __future__ import annotations

import json
import threading
import time

import jax
import pytest
from jax.errors import JaxRuntimeError

from lira_jax import ensemble, tuning
from lira_jax.errors import InputError
from lira_jax.tuning import Trial

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"


@pytest.fixture
def clock(monkeypatch):
    """Time passes only where a test lets it."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

        monotonic = perf_counter

    clock = Clock()
    monkeypatch.setattr(tuning, "time", clock)
    return clock


@pytest.fixture
def kept(tmp_path):
    """The folder of compiled programs, empty."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def takes(clock, seconds, work=1.0, most=1000, first=0.0):
    """A candidate whose unit takes so many seconds, and whose first call takes longer."""
    calls = []

    def run(units):
        clock.now += units * seconds + (0 if calls else first)
        calls.append(units)

    return lambda: Trial(run, work, most)


def fails(message):
    def make():
        raise JaxRuntimeError(message)

    return make


def fastest(candidates, **about):
    mesh = ensemble.models_mesh(jax.devices()[:1])
    return tuning.fastest(candidates, about, mesh, "runs/x", "steps")


def test_rates_are_work_per_second_without_the_first_call(clock):
    candidates = {
        "one": takes(clock, 0.01, work=2.0),
        "slow to begin": takes(clock, 0.001, first=100.0),
        "long": takes(clock, 7.0),
    }
    rates, failed = tuning.rates(candidates)
    assert rates == pytest.approx({"one": 200, "slow to begin": 1000, "long": 1 / 7})
    assert failed == {}


def test_a_call_does_no_more_than_it_can(clock):
    calls = []

    def run(units):
        calls.append(units)
        clock.now += 1e-4 * units

    tuning.rates({"a": lambda: Trial(run, 1.0, 5)})
    assert max(calls) == 5


def test_a_candidate_without_enough_memory_is_left_out_and_named(clock, kept, capsys):
    def too_large(units):
        raise JaxRuntimeError(OUT_OF_MEMORY)

    candidates = {
        "width 1": takes(clock, 0.1),
        "width 4": lambda: Trial(too_large, 1.0, 1),
        "width 16": fails("INTERNAL: no algorithm worked"),
    }
    assert fastest(candidates) == "width 1"
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        "runs/x: width 1, 10 steps/s, is the fastest of 3 ways tried in 2 s (width 4 does not fit "
        "into memory; width 16 fails: INTERNAL: no algorithm worked)"
    )


def test_if_none_runs_the_error_is_the_last_ones(clock, kept):
    with pytest.raises(JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        fastest({"a": fails("INTERNAL: broken"), "b": fails(OUT_OF_MEMORY)})
    assert list(kept.iterdir()) == []


def test_the_answer_is_remembered_for_the_same_question_alone(clock, kept, capsys):
    def candidates(one, other):
        return {"one": takes(clock, one), "other": takes(clock, other)}

    assert fastest(candidates(0.1, 0.2), batch=64) == "one"
    assert fastest(candidates(0.2, 0.1), batch=64) == "one", "as it was measured"
    assert "one, found fastest here before" in capsys.readouterr().out
    assert fastest(candidates(0.2, 0.1), batch=256) == "other"
    assert fastest(candidates(0.2, 0.1) | {"third": takes(clock, 1)}, batch=64) == "other"
    with jax.default_matmul_precision("highest"):
        assert fastest(candidates(0.2, 0.1), batch=64) == "other"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"about": {}, "fastest": "one"}', "\x00"])
def test_an_answer_that_cannot_be_read_is_measured_again(clock, kept, text):
    assert fastest({"one": takes(clock, 0.1), "other": takes(clock, 0.2)}) == "one"
    (file,) = kept.iterdir()
    file.write_text(text)
    assert fastest({"one": takes(clock, 0.2), "other": takes(clock, 0.1)}) == "other"
    assert json.loads(file.read_text())["fastest"] == "other"


def test_without_a_place_for_programs_nothing_is_remembered(clock, kept):
    jax.config.update("jax_compilation_cache_dir", None)
    assert fastest({"one": takes(clock, 0.1), "other": takes(clock, 0.2)}) == "one"
    assert fastest({"one": takes(clock, 0.2), "other": takes(clock, 0.1)}) == "other"


def test_an_answer_that_cannot_be_kept_serves_all_the_same(clock, kept, capsys):
    (kept / "file").write_text("")
    jax.config.update("jax_compilation_cache_dir", str(kept / "file"))
    assert fastest({"one": takes(clock, 0.1), "other": takes(clock, 0.2)}) == "one"
    assert "cannot be written" in capsys.readouterr().err


def test_a_single_candidate_is_taken_without_being_tried():
    assert fastest({"only": fails("INTERNAL: never called")}) == "only"


def test_candidates_compile_side_by_side_and_none_runs_meanwhile():
    together, compiling = threading.Barrier(3, timeout=30), set(range(3))

    def candidate(number):
        def make():
            together.wait()  # returns only once all three are here
            time.sleep(0.02 * number)
            compiling.remove(number)
            return Trial(lambda units: found.append(set(compiling)), 1.0, 1)

        return make

    found: list[set[int]] = []
    tuning.rates({number: candidate(number) for number in range(3)}, seconds=0.001)
    assert found
    assert not any(found)


def test_a_signal_is_answered_between_measurements(clock):
    def stopped():
        raise InputError("stopped")

    with pytest.raises(InputError, match="stopped"):
        tuning.rates({"a": takes(clock, 1.0)}, check=stopped)


def test_few_sizes_are_tried():
    assert [list(tuning.up_to(most)) for most in (1, 2, 4, 5, 16, 64)] == [
        [1],
        [1, 2],
        [1, 4],
        [1, 4, 5],
        [1, 4, 16],
        [1, 4, 16, 64],
    ]
