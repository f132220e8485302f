from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira_jax import ensemble


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.accelerator), 2, 4])
@pytest.mark.parametrize("width", [0, 1, 2, 8])
def test_a_lifted_function_equals_the_function_of_each_model(devices, width):
    mesh = ensemble.models_mesh(jax.devices()[:devices])
    models = {"a": np.arange(24.0, dtype=np.float32).reshape(8, 3), "b": np.arange(8)}
    lifted = ensemble.over_models(
        lambda model, shift: {"sum": jnp.sum(model["a"]) + model["b"] + shift, "a": model["a"]},
        mesh,
        width,
    )
    result = lifted(ensemble.put_padded(models, mesh), np.float32(0.5))
    np.testing.assert_allclose(result["sum"], models["a"].sum(axis=1) + np.arange(8) + 0.5)
    np.testing.assert_array_equal(result["a"], models["a"])


def test_models_that_do_not_divide_evenly_are_padded_on_devices_and_cut_on_the_host():
    mesh = ensemble.models_mesh(jax.devices()[:4])
    models = np.arange(6.0, dtype=np.float32)
    placed = ensemble.put_padded({"x": models}, mesh)
    assert placed["x"].shape == (8,)
    doubled = ensemble.over_models(lambda model: model["x"] * 2, mesh)(placed)
    np.testing.assert_array_equal(ensemble.on_host(doubled, 6), models * 2)


def test_no_device_talks_to_another():
    mesh = ensemble.models_mesh(jax.devices()[:4])
    lifted = ensemble.over_models(lambda model, weights: jnp.tanh(weights @ model), mesh, 2)
    models = ensemble.put_padded(np.ones((8, 5), np.float32), mesh)
    weights = ensemble.put_shared(np.ones((3, 5), np.float32), mesh)
    program = lifted.lower(models, weights).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in program


def test_every_model_has_its_place_without_padding_when_groups_fit():
    mesh = ensemble.models_mesh(jax.devices()[:4])
    assert [ensemble.slots(models, mesh) for models in (1, 4, 5, 8)] == [4, 4, 8, 8]
    assert ensemble.group_size(0, mesh) == 4
    assert [ensemble.group_size(size, mesh) for size in (1, 3, 4, 6, 8)] == [1, 3, 4, 4, 8]
