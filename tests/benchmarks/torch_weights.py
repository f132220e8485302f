"""Variables of a Flax network as the state of the PyTorch network of the same attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lira_jax.networks import Network, Variables

_NAMES = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
# Kernels [H, W, I, O] and [I, O] in Flax.
_ORDERS = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}


def random_variables(network: Network) -> Variables:
    """Away from initial values: no variance of 1, no bias of 0, no filter that passes on a channel,
    whose equal pixels share the gradient of a maximum in JAX and do not in PyTorch."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), jnp.float32),
        jax.jit(network.init)(jax.random.key(0)),
    )


def in_torch(variables: Any) -> Iterator[tuple[str, np.ndarray]]:
    """PyTorch's names and arrays of what a network's `params` and `rest` hold."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        *layer, kind = [str(getattr(key, "key", key)) for key in path[1:]]
        name = ".".join([*layer, _NAMES.get(kind, kind)])
        yield name, np.array(leaf).transpose(_ORDERS[leaf.ndim])


def copy(variables: Any, model: Any) -> None:
    """Give a PyTorch network all of a Flax network's variables."""
    import torch

    state, arrays = model.state_dict(), dict(in_torch(variables))
    assert state.keys() == arrays.keys()
    for name, array in arrays.items():
        assert state[name].shape == array.shape, name
        state[name].copy_(torch.from_numpy(array))


def nchw(images: np.ndarray) -> Any:
    """Images [B, H, W, C] as a tensor [B, C, H, W]."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2)
