from __future__ import annotations

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp

from lira_jax.defences.memguard import memguard
from lira_jax.score_set import logit_scaled

LOGITS = st.integers(2, 12).flatmap(
    lambda classes: hnp.arrays(
        np.float32,
        (5, classes),
        # Few values, so that ties are many; and the whole range.
        elements=st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(width=32, allow_nan=False)),
    )
)


@settings(deadline=None)
@given(LOGITS)
def test_labels_never_change_and_no_score_carries_more_than_the_label(logits):
    served = memguard(logits)
    assert served.dtype == np.float32
    np.testing.assert_array_equal(served.argmax(1), logits.argmax(1))
    np.testing.assert_allclose(logsumexp(served.astype(np.float64), axis=1), 0, atol=1e-6)
    for label in range(logits.shape[1]):
        truth = np.full(5, label)
        phi = logit_scaled(served, truth)
        right = logits.argmax(1) == truth
        for same in (phi[right], phi[~right]):
            assert len(np.unique(same)) <= 1


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_predicted_class_is_given_a_thousandth_more_than_chance(classes):
    logits = np.random.default_rng(0).normal(size=(3, classes))
    p = np.exp(memguard(logits))
    top = p[np.arange(3), logits.argmax(1)]
    np.testing.assert_allclose(top, 1 / classes + 1e-3)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(np.sort(p, axis=1)[:, :-1], (1 - top[0]) / (classes - 1))


# XLA takes subnormal numbers for 0, so that they tie.
@settings(deadline=None, max_examples=20)
@given(hnp.arrays(np.float32, (4, 7), elements=st.floats(-50, 50, width=32, allow_subnormal=False)))
def test_jax_arrays_are_guarded_as_numpy_arrays_are(logits):
    np.testing.assert_array_equal(memguard(jnp.asarray(logits)), memguard(logits))


def test_it_needs_no_jax():
    code = "import sys; import lira_jax.defences.memguard; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
