from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax.data.views import augmented, check_shift, fixed_views, plain, take
from lira_jax.errors import InputError
from tests.precision import assert_same

# Compiled once, which on an accelerator takes less than operation by operation.
jitted_take, jitted_plain = jax.jit(take), jax.jit(plain)
jitted_augmented = jax.jit(augmented, static_argnames=("mirror", "shift", "cutout"))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), np.uint8)


def by_padding(image, down, right, pad=4):
    """A shift the usual way: pad with reflection, then crop."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    return padded[pad + down : pad + down + height, pad + right : pad + right + width]


def test_the_four_view_sets_are_nested_and_begin_with_the_image_itself():
    everything = list(zip(*fixed_views(162), strict=True))
    assert everything[0] == (False, 0, 0)
    assert everything[1] == (True, 0, 0)
    assert len(set(everything)) == 162
    assert {shift[1:] for shift in everything} == {
        (down, right) for down in range(-4, 5) for right in range(-4, 5)
    }
    eighteen = list(zip(*fixed_views(18), strict=True))
    assert eighteen == everything[:18]
    assert max(abs(part) for view in eighteen for part in view[1:]) == 1


@pytest.mark.accelerator
def test_views_equal_mirroring_then_reflect_padding_and_cropping(images):
    views = fixed_views(162)
    index = np.full(162, 2, np.int32)
    got = np.asarray(jitted_take(images, index, *views))
    for query, (mirror, down, right) in enumerate(zip(*views, strict=True)):
        source = images[2][:, ::-1] if mirror else images[2]
        expected = by_padding(source, down, right)
        np.testing.assert_allclose(got[query], expected / 127.5 - 1, atol=1e-6)


@pytest.mark.accelerator
def test_the_identity_view_is_the_plain_image(images):
    views = fixed_views(1)
    index = np.arange(6, dtype=np.int32)
    tiled = [np.repeat(part, 6) for part in views]
    assert_same(jitted_take(images, index, *tiled), jitted_plain(images, index))


@settings(max_examples=15, deadline=None)
@given(st.booleans(), st.integers(0, 3), st.integers(0, 4), st.integers(0, 2**31 - 1))
def test_augmentation_only_moves_pixels_or_greys_them(mirror, shift, cutout, seed):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    index = np.array([2, 0, 1, 1], np.int32)
    x = augmented(
        jnp.asarray(images), index, jax.random.key(seed), mirror=mirror, shift=shift, cutout=cutout
    )
    assert x.shape == (4, 8, 8, 1)
    for row, example in enumerate(index):
        levels = set(np.unique(np.float32(images[example]) / np.float32(127.5) - 1)) | {0.0}
        close = np.array(sorted(levels))
        assert np.abs(np.unique(x[row])[:, None] - close).min(axis=1).max() < 1e-6
    if not (mirror or shift or cutout):
        np.testing.assert_array_equal(x, plain(jnp.asarray(images), index))


@pytest.mark.accelerator
def test_half_the_images_are_mirrored_and_every_shift_occurs():
    image = np.arange(81, dtype=np.uint8).reshape(1, 9, 9, 1)
    index = np.zeros(4000, np.int32)
    x = jitted_augmented(image, index, jax.random.key(0), mirror=True, shift=0, cutout=0)
    x = np.asarray(x)
    mirrored = x[:, 0, 0, 0] > x[:, 0, 8, 0]
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)
    x = jitted_augmented(image, index, jax.random.key(1), mirror=False, shift=2, cutout=0)
    centres, counts = np.unique(np.asarray(x)[:, 4, 4, 0], return_counts=True)
    assert len(centres) == 25
    assert counts.min() > 100


@pytest.mark.accelerator
def test_cutout_greys_a_square_around_a_uniform_pixel():
    image = np.full((1, 12, 12, 1), 255, np.uint8)
    index = np.zeros(500, np.int32)
    x = jitted_augmented(image, index, jax.random.key(0), mirror=False, shift=0, cutout=4)
    holes = np.asarray(x)[..., 0] == 0
    sizes = holes.sum(axis=(1, 2))
    assert sizes.max() == 16
    assert sizes.min() >= 4
    assert (holes.any(axis=0)).all()


def test_a_shift_that_does_not_fit_the_image_is_refused():
    check_shift(3, (4, 9, 1), "train.shift")
    with pytest.raises(InputError, match=r"train\.shift: a shift of 4 pixels does not fit"):
        check_shift(4, (4, 9, 1), "train.shift")
