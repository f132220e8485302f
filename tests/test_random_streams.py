from __future__ import annotations

import subprocess
import sys

import numpy as np

from lira_jax import random_streams

OF_MODELS = ["INIT", "ORDER", "AUGMENT", "DROPOUT", "ADVERSARY", "HELD_OUT"]
OF_ALL = ["NOISY_QUERIES", "LABEL_NOISE", "LABEL_FLIPS", "BOUNDARY", "LAPLACE"]


def test_the_table_has_every_number_and_none_twice_or_of_a_model():
    numbers = {
        name: value for name, value in vars(random_streams).items() if isinstance(value, int)
    }
    assert list(numbers) == [*OF_MODELS, *OF_ALL]
    for names in (OF_MODELS, OF_ALL):
        assert len({numbers[name] for name in names}) == len(names)
    assert min(numbers[name] for name in OF_ALL) > 2**31 - 10
    assert all(f"`{name}`" in random_streams.__doc__ for name in numbers)


def test_values_are_those_of_earlier_versions():
    """So that a run can go on, and be scored again, after an update."""
    assert [getattr(random_streams, name) for name in OF_MODELS] == [0, 1, 2, 3, 5, 6]
    assert [2**31 - getattr(random_streams, name) for name in OF_ALL] == [1, 2, 3, 4, 5]
    streams = {
        (7, 3): random_streams.masks(7, 3),
        (7, 3, 1): random_streams.probes(7, 3),
        (7, 0, 2): random_streams.canaries(7),
        (7, 0, 3): random_streams.judges(7),
        (7, 0, 4, 3632233996): random_streams.trust_inputs(7, "test"),
    }
    drawn = [stream.integers(2**40, size=3).tolist() for stream in streams.values()]
    assert drawn == [
        np.random.default_rng(seed).integers(2**40, size=3).tolist() for seed in streams
    ]
    assert len({tuple(numbers) for numbers in drawn}) == len(drawn)


def test_it_needs_no_jax():
    code = "import sys; import lira_jax.random_streams; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
