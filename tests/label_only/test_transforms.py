from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from lira_jax.label_only.answers import shifts
from lira_jax.label_only.transforms import flipped, noisy, rotated, translated

IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 12, 9, 3), np.uint8))
KEY = jax.random.key(5)


def scaled(image):
    return np.asarray(image, np.float64) / 127.5 - 1


@pytest.mark.parametrize(
    "degrees",
    [-90.0, -15.0, -1.0, 0.0, 4.0, pytest.param(33.3, marks=pytest.mark.accelerator), 180.0],
)
def test_rotations_are_those_of_scipy(degrees):
    found = rotated(IMAGES, jnp.array([2, 0]), jnp.full(2, degrees))
    for view, number in zip(found, (2, 0), strict=True):
        expected = ndimage.rotate(
            scaled(IMAGES[number]), degrees, reshape=False, order=1, mode="nearest"
        )
        np.testing.assert_allclose(view, expected, atol=2e-5)


def test_a_rotation_by_nothing_is_the_image_and_one_by_a_degree_resamples_it():
    images = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), np.uint8)
    images = jnp.asarray(images)
    still, turned = rotated(images, jnp.zeros(2, jnp.int32), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(still, scaled(images[0]), atol=1e-5)
    assert (np.abs(turned - still) > 1e-3).mean() > 0.9


@pytest.mark.parametrize("distance", [1, pytest.param(3, marks=pytest.mark.accelerator)])
def test_translations_are_those_of_scipy(distance):
    moves = shifts(distance)
    down, right = map(jnp.array, zip(*moves, strict=True))
    found = translated(IMAGES, jnp.full(len(moves), 3), down, right)
    for view, move in zip(found, moves, strict=True):
        expected = ndimage.shift(scaled(IMAGES[3]), (*move, 0), order=0, mode="nearest")
        np.testing.assert_allclose(view, expected, atol=1e-6)


@pytest.mark.accelerator
def test_noise_has_the_asked_strength_in_units_of_images_up_to_1_and_stays_in_range():
    images = jnp.full((1, 16, 16, 3), 128, jnp.uint8)
    found = np.asarray(noisy(images, jnp.array([0]), KEY, (0.02, 0.1, 3.0), 6))[0]
    assert found.shape == (3, 6, 16, 16, 3)
    for copies, strength in zip(found[:2], (0.02, 0.1), strict=True):
        noise = (copies - scaled(images[0])) / 2
        assert stats.kstest(noise.ravel() / strength, "norm").pvalue > 1e-3
    assert (found[2].min(), found[2].max()) == (-1, 1)


def test_flips_happen_with_the_asked_probability_and_turn_minus_1_into_1():
    images = np.random.default_rng(2).integers(0, 2, (1, 16, 16, 3), np.uint8) * np.uint8(255)
    images = jnp.asarray(images)
    found = np.asarray(flipped(images, jnp.array([0]), KEY, (0.1, 1.0), 8, (0, 255)))[0]
    x = scaled(images[0])
    np.testing.assert_allclose(np.abs(found), 1, atol=1e-6)
    share = (found[0] * x < 0).mean()
    assert stats.binomtest(round(share * found[0].size), found[0].size, 0.1).pvalue > 1e-3
    np.testing.assert_allclose(found[1], np.broadcast_to(-x, found[1].shape), atol=1e-6)


def test_flips_exchange_any_two_values():
    images = jnp.array([3, 200, 200, 3], jnp.uint8).reshape(1, 2, 2, 1)
    (found,) = flipped(images, jnp.array([0]), KEY, (1.0,), 1, (3, 200))
    np.testing.assert_allclose(found[0, 0], scaled(203 - images[0]), atol=1e-6)


@pytest.mark.parametrize("kind", ["noisy", "flipped"])
def test_copies_depend_on_example_strength_and_copy_alone(kind):
    images = jnp.zeros((4, 8, 8, 1), jnp.uint8)

    def draw(index, strengths, copies):
        if kind == "noisy":
            return np.asarray(noisy(images + 100, jnp.array(index), KEY, strengths, copies))
        return np.asarray(flipped(images, jnp.array(index), KEY, strengths, copies, (0, 255)))

    many = draw([3, 1, 2], (0.1, 0.2), 5)
    np.testing.assert_array_equal(many[1:2, :1, :3], draw([1], (0.1,), 3))
    flat = many.reshape(30, -1)
    assert len(np.unique(flat, axis=0)) == 30
