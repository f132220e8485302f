"""Distances from labels alone, against closed forms and against queries counted on the host."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax import ensemble
from lira_jax.label_only import hop_skip_jump as hsj
from tests.conftest import refusal

SHAPE = (4, 4, 1)
CHECKPOINTS = (50, 100, 200, 400, 1000, 2500)
NORMAL = np.random.default_rng(5).integers(-20, 21, SHAPE)
LENGTH = np.sqrt(np.sum(NORMAL**2))


def linear(x):
    """1 on one side of a plane through the origin. In integers, so that sums are exact."""
    fixed = jnp.round(x * 4096).astype(jnp.int32)
    return (jnp.sum(fixed * NORMAL, axis=(1, 2, 3)) > 0).astype(jnp.int32)


def constant(x):
    return jnp.zeros(len(x), jnp.int32)


def images(count=12, seed=0):
    """Images well inside the range, so that its ends are not met on the way to the boundary."""
    random = np.random.default_rng(seed)
    return jnp.asarray(random.uniform(-0.3, 0.3, (count, *SHAPE)), jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def run(classify, x, labels, numbers, checkpoints=CHECKPOINTS, chunk=16, others=None):
    others = x if others is None else others
    key = jax.random.key(7)
    return hsj.run(classify, x, labels, numbers, others, key, checkpoints, chunk)


@pytest.mark.accelerator
def test_of_a_plane_the_distance_is_found_within_a_few_percent():
    x = images()
    found = run(linear, x, linear(x), jnp.arange(len(x)))
    exact = np.abs(np.sum(np.asarray(x) * NORMAL, axis=(1, 2, 3))) / LENGTH / 2
    ratio = np.asarray(found.reached) / exact[:, None]
    assert ratio.min() > 1 - 1e-3  # the grid of the integers
    assert np.median(ratio[:, -1]) < 1.02
    assert ratio[:, -1].max() < 1.06
    assert np.median(ratio[:, 1]) > 1.1  # not by chance: a hundred queries are too few


@pytest.mark.accelerator
def test_newest_image_is_misclassified_and_as_far_as_told():
    x = images()
    found = run(linear, x, linear(x), jnp.arange(len(x)))
    assert (linear(found.adversarial) != linear(x)).all()
    far = np.linalg.norm((found.adversarial - x).reshape(len(x), -1), axis=1) / 2
    np.testing.assert_allclose(found.distance, far, rtol=1e-5)


def test_checkpoints_fall_and_one_of_few_queries_is_that_of_a_smaller_budget():
    x = images()
    numbers = jnp.arange(len(x))
    reached = np.asarray(run(linear, x, linear(x), numbers).reached)
    assert (np.diff(reached, axis=1) <= 0).all()
    # With a smaller budget the last iterations have fewer directions; before these all is the same.
    less = run(linear, x, linear(x), numbers, (50, 100, 200, 1000))
    np.testing.assert_array_equal(less.reached[:, :3], reached[:, :3])


@pytest.mark.accelerator
def test_misclassified_images_have_distance_zero_for_one_query():
    x = images()
    labels = linear(x).at[3].set(1 - linear(x)[3])
    found = run(linear, x, labels, jnp.arange(len(x)))
    assert found.queries[3] == 1
    assert (np.asarray(found.reached[3]) == 0).all()
    assert (np.delete(np.asarray(found.reached), 3, axis=0) > 0).all()


def test_without_any_other_label_the_distance_is_the_diameter():
    x = images(3)
    found = run(constant, x, constant(x), jnp.arange(3))
    assert (np.asarray(found.reached) == 4.0).all()
    assert hsj.diameter(SHAPE) == 4.0
    assert (np.asarray(found.queries) == 1 + hsj.NOISE_TRIES + hsj.OTHER_TRIES).all()
    np.testing.assert_array_equal(found.adversarial, x)


def test_where_noise_has_one_label_the_search_starts_from_other_images():
    def bright(x):  # no noise is
        return (jnp.mean(x, axis=(1, 2, 3)) > 0.9).astype(jnp.int32)

    x, white = images(4), jnp.ones((1, *SHAPE))
    found = run(bright, x, bright(x), jnp.arange(4), CHECKPOINTS, 16, white)
    # The nearest bright image is grey: every pixel is raised to the same value at least.
    exact = (0.9 - np.asarray(x).mean(axis=(1, 2, 3))) * 4 / 2
    assert (np.asarray(found.reached[:, -1]) > 0.99 * exact).all()
    assert (np.asarray(found.reached[:, -1]) < 1.5 * exact).all()


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(12)), start=st.integers(0, 8))
def test_an_example_depends_on_no_other(order, start):
    x = images()
    alone = run(linear, x, linear(x), jnp.arange(12))
    chosen = np.array(order[start : start + 4])
    found = run(linear, x[chosen], linear(x)[chosen], chosen.astype(np.int32), others=x)
    np.testing.assert_array_equal(found.reached, alone.reached[chosen])
    np.testing.assert_array_equal(found.queries, alone.queries[chosen])


def test_nothing_depends_on_the_chunk():
    x = images()
    first, second = (run(linear, x, linear(x), jnp.arange(12), CHECKPOINTS, c) for c in (16, 5))
    np.testing.assert_array_equal(second.adversarial, first.adversarial)
    np.testing.assert_array_equal(second.reached, first.reached)


def test_numbers_and_key_decide_what_is_random():
    x = images()
    x = x.at[1].set(x[0])
    first = run(linear, x, linear(x), jnp.full(12, 4))
    np.testing.assert_array_equal(first.reached[0], first.reached[1])
    second = run(linear, x, linear(x), jnp.arange(4, 16))
    assert (second.reached[0, -1] != second.reached[1, -1]).all()


@pytest.mark.parametrize("budget", [hsj.minimum_budget(SHAPE), 333])
def test_queries_are_those_that_the_model_got_and_inside_the_range(budget):
    x = images(5, seed=2) * 3  # near enough to the ends to be clipped
    wrong = 2
    labels = linear(x).at[wrong].set(1 - linear(x)[wrong])
    got = np.zeros(5, int)

    calls = []

    def count(asked, label):
        calls.append(np.abs(asked).max())
        return label

    def counting(asked):
        label = linear(asked)
        of = jax.ShapeDtypeStruct((1,), jnp.int32)
        return jax.experimental.io_callback(count, of, asked, label, ordered=True)

    # One image at a time: every call of the model is then a query, and of an example that is known.
    for example in range(5):
        one = slice(example, example + 1)
        before = len(calls)
        found = run(counting, x[one], labels[one], jnp.arange(5)[one], (budget,), 1, x)
        jax.block_until_ready(found)
        got[example] = len(calls) - before
        assert found.queries[0] == got[example] <= budget
    together = run(linear, x, labels, jnp.arange(5), (budget,))
    np.testing.assert_array_equal(together.queries, got)
    assert max(calls) <= 1
    assert got[wrong] == 1
    # What is left would not do for another iteration.
    least = hsj.LEAST_DIRECTIONS + hsj.STEP_TRIES + hsj.search_queries(SHAPE)
    assert (np.delete(got, wrong) > budget - least).all()


def test_every_image_gets_an_iteration_out_of_the_least_budget():
    def far_from_noise(x):  # which is tried in vain, as are all others
        return (jnp.mean(x, axis=(1, 2, 3)) > 0.9).astype(jnp.int32)

    x = images(6)
    tried = 1 + hsj.NOISE_TRIES
    for others in (jnp.ones((13, *SHAPE)), jnp.concatenate([jnp.ones((1, *SHAPE)), x, x])):
        found = run(
            far_from_noise,
            x,
            far_from_noise(x),
            jnp.arange(6),
            (hsj.minimum_budget(SHAPE),),
            16,
            others,
        )
        met = np.asarray(found.reached[:, 0]) < hsj.diameter(SHAPE)
        assert met.any()
        assert (np.asarray(found.queries)[met] > tried + hsj.search_queries(SHAPE) + 10).all()
        assert found.iteration >= 1


def test_a_budget_that_is_too_small_is_refused():
    least = hsj.minimum_budget((32, 32, 3))
    hsj.check_budget(least, (32, 32, 3))
    for key in ("label_only.budget", "label_only.combined_budget"):
        message = refusal(None, lambda key=key: hsj.check_budget(least - 1, (32, 32, 3), key))
        assert message.startswith(f"{key} = {least - 1}: ")
        assert f"{least} or more" in message
        assert "32×32×3" in message


def test_iterations_of_a_host_loop_over_several_models_are_those_of_run():
    x = images(6)
    normals = jnp.stack([jnp.asarray(NORMAL), jnp.asarray(NORMAL[::-1])])
    mesh = ensemble.models_mesh(jax.devices()[:2])
    key, checkpoints = jax.random.key(7), (100, 300)

    def classifier(normal):
        def classify(x):
            fixed = jnp.round(x * 4096).astype(jnp.int32)
            return (jnp.sum(fixed * normal, axis=(1, 2, 3)) > 0).astype(jnp.int32)

        return classify

    def begin(normal, x, key):
        classify = classifier(normal)
        return hsj.start(classify, x, linear(x), jnp.arange(6), x, key, checkpoints, 16)

    def go_on(model, key):
        normal, state = model
        return hsj.advance(classifier(normal), state, key, checkpoints, 16)

    advance = ensemble.over_models(go_on, mesh)
    state = ensemble.over_models(begin, mesh)(normals, x, key)
    iterations = 0
    while np.asarray(state.active).any():
        state = advance((normals, state), key)
        iterations += 1
    assert iterations > 1
    whole = jax.jit(
        lambda normal: hsj.run(
            classifier(normal), x, linear(x), jnp.arange(6), x, key, checkpoints, 16
        )
    )
    for model in range(2):
        expected = whole(normals[model])
        # Compiled apart, and so equal but for rounding.
        np.testing.assert_allclose(state.reached[model], expected.reached, rtol=1e-5)
        np.testing.assert_array_equal(state.queries[model], expected.queries)


def test_everything_is_finite_at_the_ends_of_the_range_and_beside_the_boundary():
    x = images().at[:3].set(jnp.stack([jnp.ones(SHAPE), -jnp.ones(SHAPE), jnp.zeros(SHAPE)]))
    found = run(linear, x, linear(x), jnp.arange(12))
    for array in found:
        assert np.isfinite(np.asarray(array)).all()
    # The origin lies on the boundary.
    assert found.reached[2, -1] < 1e-2
