"""The arithmetic of a network, which no machine changes: what the benchmarks divide by."""

from __future__ import annotations

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from lira_jax import networks
from lira_jax.config import NetworkConfig
from lira_jax.networks import conv


def forward_flops(
    config: NetworkConfig, image_shape: tuple[int, int, int], classes: int = 10
) -> int:
    """FLOPs of one image's forward pass in convolutions and dense layers, padding counted.

    A training step is taken as three times that: forward, gradient of the input, of the weights.
    """
    # One ordinary convolution each, instead of the ways in which platforms do it.
    with mock.patch.object(conv, "_conv", lambda *args: conv._ordinary(*args[:-1])):
        network = networks.build(config, image_shape, classes)
        variables = jax.eval_shape(network.init, jax.random.key(0))
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        return _count(jax.make_jaxpr(network.apply)(variables, image).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval.shape
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape  # HWIO
            total += 2 * int(np.prod(out)) * int(np.prod(kernel[:-1]))
        elif equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            shape = equation.invars[0].aval.shape
            total += 2 * int(np.prod(out)) * int(np.prod([shape[axis] for axis in contracted]))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)  # closed or open
                total += _count(inner) if hasattr(inner, "eqns") else 0
    return total
