"""Distances found with gradients, against closed forms and against labels alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira_jax.label_only import hop_skip_jump as hsj
from lira_jax.label_only.carlini_wagner import ROUNDS, distances

SHAPE = (4, 4, 1)
random = np.random.default_rng(0)
KERNEL = jnp.asarray(random.normal(size=(16, 3)), jnp.float32)
IMAGES = jnp.asarray(random.uniform(-0.3, 0.3, (12, *SHAPE)), jnp.float32)


def linear(x):
    return x.reshape(len(x), -1) @ KERNEL


def labels_of(x):
    return jnp.argmax(linear(x), axis=1).astype(jnp.int32)


def exact(x):
    """The nearest of the planes on which another class has the same logit."""
    z, kernel = np.asarray(linear(x), float), np.asarray(KERNEL, float)
    found = np.full(len(x), np.inf)
    for row, label in enumerate(np.argmax(z, axis=1)):
        for other in set(range(3)) - {label}:
            gap = (z[row, label] - z[row, other]) / 2
            normal = kernel[:, label] - kernel[:, other]
            found[row] = min(found[row], gap / np.linalg.norm(normal))
    return found


def test_of_planes_the_distance_is_found_and_closer_than_by_labels():
    found = np.asarray(
        jax.jit(distances, static_argnums=(0, 3))(linear, IMAGES, labels_of(IMAGES), 500)
    )
    ratio = found / exact(IMAGES)
    assert ratio.min() > 1 - 1e-5
    assert np.median(ratio) < 1.01
    assert ratio.max() < 1.05
    by_labels = jax.jit(
        lambda x: hsj.run(
            labels_of, x, labels_of(x), jnp.arange(12), x, jax.random.key(0), (2500,), 72
        ).reached[:, 0]
    )(IMAGES)
    assert found.mean() < by_labels.mean()


def test_misclassified_images_have_distance_zero():
    wrong = labels_of(IMAGES).at[4].set((labels_of(IMAGES)[4] + 1) % 3)
    found = np.asarray(distances(linear, IMAGES, wrong, 100))
    assert found[4] == 0
    assert (np.delete(found, 4) > 0).all()


def test_where_nothing_is_found_the_distance_is_the_diameter():
    def sure(x):
        return jnp.stack([100 + 0 * x[:, 0, 0, 0], x[:, 0, 0, 0]], axis=1)

    found = distances(sure, IMAGES, jnp.zeros(12, jnp.int32), ROUNDS)
    np.testing.assert_array_equal(found, 4.0)


def test_fewer_steps_than_rounds_are_taken_all_the_same():
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return linear(x)

    for steps in (1, ROUNDS + 2):
        calls.clear()
        found = distances(counted, IMAGES, labels_of(IMAGES), steps)
        jax.effects_barrier()
        assert np.isfinite(found).all()
        assert len(calls) == steps + 1  # and once for the images themselves


@pytest.mark.parametrize("chosen", [[5], [8, 2, 11]])
def test_an_example_depends_on_no_other(chosen):
    labels = labels_of(IMAGES)
    together = distances(linear, IMAGES, labels, 150)
    apart = distances(linear, IMAGES[np.array(chosen)], labels[np.array(chosen)], 150)
    np.testing.assert_allclose(apart, together[np.array(chosen)], rtol=1e-4)


def test_of_a_network_both_attacks_agree():
    """Of two layers, untrained: its boundary is smooth and curved, as a trained one's would be."""
    random = np.random.default_rng(1)
    first, second = (jnp.asarray(random.normal(size=size)) for size in ((16, 32), (32, 5)))
    others = IMAGES
    x = others[:8]

    def logits(x):
        return jnp.tanh(x.reshape(len(x), -1) @ first) @ second

    def classify(x):
        return jnp.argmax(logits(x), axis=1).astype(jnp.int32)

    labels = classify(x)
    by_gradient = np.asarray(jax.jit(lambda: distances(logits, x, labels, 500))())
    key, numbers = jax.random.key(0), jnp.arange(8)
    run = jax.jit(lambda: hsj.run(classify, x, labels, numbers, others, key, (2500,), 72))
    by_labels = np.asarray(run().reached[:, 0])
    assert (by_gradient < hsj.diameter(SHAPE)).all()
    assert by_gradient.mean() < by_labels.mean()
    assert by_labels.mean() < 1.5 * by_gradient.mean()
