"""Modified entropy against its formula and a closed form; thresholds against trying all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from lira_jax.attacks import song_mittal
from tests.attacks.shadow_outputs import blocked_masks, outputs, run


@given(st.integers(0, 2**32 - 1), st.integers(2, 7))
def test_it_is_the_formula_of_the_paper(seed, classes):
    rng = np.random.default_rng(seed)
    logits, labels = 2 * rng.normal(size=(20, classes)), rng.integers(0, classes, 20)
    got = song_mittal.log_modified_entropy(logits, labels)
    for value, p, y in zip(got, softmax(logits, axis=1), labels, strict=True):
        entropy = -(1 - p[y]) * np.log(p[y])
        entropy -= sum(p[k] * np.log(1 - p[k]) for k in range(classes) if k != y)
        assert value == pytest.approx(np.log(entropy), abs=1e-9)


def test_two_classes_keep_their_closed_form_where_probabilities_round_to_one():
    # M = −2 (1 − p) log p, with p = 1 / (1 + exp(−φ)).
    phi = np.array([-5000.0, -300.0, -40.0, -1.0, 0.0, 3.0, 40.0, 300.0, 5000.0])
    logits = np.stack([phi + 7, np.full_like(phi, 7.0)], axis=1)
    got = song_mittal.log_modified_entropy(logits, np.zeros(len(phi), dtype=int))
    loss = np.logaddexp(0, -phi)
    with np.errstate(divide="ignore"):
        log_loss = np.where(phi > 37, -phi, np.log(loss))
    np.testing.assert_allclose(got, np.log(2) - np.logaddexp(0, phi) + log_loss, rtol=1e-12)
    assert (np.diff(got) < 0).all()


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=12))
def test_no_threshold_tells_members_better(pairs):
    values, member = np.array(pairs).T
    member = member.astype(bool)
    tau = song_mittal.threshold(values.astype(float), member)
    if member.all() or not member.any():
        assert tau is None
        return

    def advantage(limit):
        return (values[member] <= limit).mean() - (values[~member] <= limit).mean()

    assert advantage(tau) == pytest.approx(max(advantage(value) for value in values))


def test_a_class_with_its_own_scale_has_its_own_threshold():
    rng = np.random.default_rng(0)
    score_set = outputs(rng, blocked_masks(rng, 16, 600), classes=3, shift=3.0)
    score_set.logits[:, score_set.labels == 2] *= 5
    got = run(score_set, "song-mittal")["song-mittal"]
    tau = got + np.stack(
        [song_mittal.log_modified_entropy(z, score_set.labels) for z in score_set.logits]
    )
    # Four fits; each target's examples of a class have the threshold of one of two.
    by_class = [tau[:, score_set.labels == label] for label in range(3)]
    for each in by_class:
        assert len(np.unique(each.round(9))) == 4
    assert by_class[2].max() < min(by_class[0].min(), by_class[1].min())
    called = got > 0
    assert called[score_set.keep].mean() > called[~score_set.keep].mean() + 0.2


def test_classes_too_small_for_a_threshold_take_that_of_all():
    rng = np.random.default_rng(1)
    score_set = outputs(rng, blocked_masks(rng, 8, 100), classes=3, shift=1.0)
    score_set.labels[:] = np.minimum(score_set.labels, 1)
    score_set.labels[17] = 2  # alone: it is in one half, and is attacked from the other
    assert np.isfinite(run(score_set, "song-mittal")["song-mittal"]).all()
