"""Architectures by name, and one network as pure functions.

A network is a Flax NNX module that maps images float [B, H, W, C] in [−1, 1] to logits float32
[B, K]. To add one: a file here and a line in `ARCHITECTURES`, or
`arch = "package.module:function"`, a callable taking the keyword arguments
`image_shape, classes, depth, width, dtype, rngs`. Architectures here also take `norm` and
`dropout`, and have a method `features`, the last layer being their attribute `dense` or `head`; a
function of yours makes its own choice of both, and its module may have the method and the attribute
too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lira_jax.config import NetworkConfig
from lira_jax.errors import InputError
from lira_jax.networks.conv import CONV_GRADIENTS, Gradients
from lira_jax.networks.convnet import ConvNet
from lira_jax.networks.resnet import ResNet
from lira_jax.networks.speed_net import SpeedNet
from lira_jax.networks.wide_resnet import WideResNet
from lira_jax.user_code import import_function, running

ARCHITECTURES: dict[str, Callable[..., nnx.Module]] = {
    "wide_resnet": WideResNet,
    "resnet": ResNet,
    "convnet": ConvNet,
    "speed_net": SpeedNet,
}
# Depths are 6n plus this.
_DEPTH_OFFSET = {"wide_resnet": 4, "resnet": 2}

# What a network keeps beside weights; random streams are drawn anew each step.
_REST = nnx.Not(nnx.Any(nnx.Param, nnx.RngState))

# The last layer is the attribute of one of these names, in users' own networks as in ours.
LAST_LAYERS = ("dense", "head")

Variables = dict[str, Any]
"""`params` (trained weights) and `rest` (BatchNorm statistics and the like): nested dicts of
arrays."""


@dataclass(frozen=True)
class Network:
    """One architecture as pure functions of its variables.

    Attributes:
        init: key ↦ variables.
        apply_train: variables, images [B, H, W, C], key for dropout ↦ logits [B, K], new `rest`;
            in training mode, with batch statistics.
        apply: variables, images ↦ logits [B, K] in evaluation mode; each image for itself.
        apply_tuned: variables, images, key ↦ logits [B, K], in evaluation mode but for dropout: to
            train the last layer alone.
        features: variables, images ↦ the last layer's inputs [B, F] in evaluation mode; raises
            InputError for a user's module that has no method `features`.
        head_inputs: variables, images ↦ what the last layer's weights multiply [B, F], in
            evaluation mode: logits = head_scale · (head_inputs @ kernel + bias), with a
            convolution's kernel as a matrix. It is the module's method `head_inputs` or, without
            one, `features`.
        head_scale: what the last layer's outputs are multiplied by; the module's `head_scale`, or
            1.
    """

    init: Callable[[Key[Array, ""]], Variables]
    apply_train: Callable[
        [Variables, Float[Array, "B H W C"], Key[Array, ""]],
        tuple[Float[Array, "B K"], Variables],
    ]
    apply: Callable[[Variables, Float[Array, "B H W C"]], Float[Array, "B K"]]
    apply_tuned: Callable[[Variables, Float[Array, "B H W C"], Key[Array, ""]], Float[Array, "B K"]]
    features: Callable[[Variables, Float[Array, "B H W C"]], Float[Array, "B F"]]
    head_inputs: Callable[[Variables, Float[Array, "B H W C"]], Float[Array, "B F"]]
    head_scale: float = 1.0


def last_layer(variables: Variables, arch: str, asked_by: str) -> str:
    """The name of a network's last layer.

    Args:
        asked_by: configuration key that needs to know, for the message.

    Raises:
        InputError: a network of the user's own that has none, or two, of these names.
    """
    names = [name for name in LAST_LAYERS if name in variables["params"]]
    if len(names) != 1:
        raise InputError(
            f'{asked_by}: network.arch = "{arch}" does not tell its last layer; name '
            f"the attribute that holds it {' or '.join(LAST_LAYERS)}, and no other"
        )
    return names[0]


def build(
    config: NetworkConfig,
    image_shape: tuple[int, int, int],
    classes: int,
    dtype: str = "float32",
    dropout: float = 0.0,
    conv_gradients: Gradients = "vmap",
) -> Network:
    """The network of a configuration for images [H, W, C] and K classes.

    Args:
        conv_gradients: how our own convolutions write the gradients of vectorised models, see
            there.

    Raises:
        InputError: unknown architecture, impossible depth, or a user's function that cannot be
            imported, does not return a Flax NNX module, or is asked for dropout or group
            normalisation.
    """
    options: dict[str, Any] = {"norm": config.norm, "dropout": dropout}
    if ":" in config.arch:
        for name, asked in (("network.norm", config.norm != "batch"), ("defence.dropout", dropout)):
            if asked:
                raise InputError(
                    f'{name}: network.arch = "{config.arch}" is a function of yours, which settles '
                    f"that itself; leave {name} out"
                )
        make = import_function(config.arch, "network.arch")
        options = {}
    elif config.arch in ARCHITECTURES:
        make = ARCHITECTURES[config.arch]
        offset = _DEPTH_OFFSET.get(config.arch)
        if offset and (config.depth <= offset or (config.depth - offset) % 6):
            raise InputError(
                f"network.depth = {config.depth}: {config.arch} has depth 6n+{offset}, "
                f"such as {6 + offset} or {18 + offset}"
            )
    else:
        raise InputError(
            f'network.arch = "{config.arch}": choose one of {", ".join(ARCHITECTURES)}, '
            "or package.module:function"
        )

    def module(key: Key[Array, ""]) -> nnx.Module:
        return make(
            image_shape=image_shape,
            classes=classes,
            depth=config.depth,
            width=config.width,
            dtype=jnp.dtype(dtype),
            rngs=nnx.Rngs(key),
            **options,
        )

    where = f'network.arch = "{config.arch}" for images {image_shape}'
    advice = "it takes image_shape, classes, depth, width, dtype, rngs and returns a nnx.Module"
    with running(where, advice):
        abstract = nnx.eval_shape(lambda: module(jax.random.key(0)))
    abstract.set_attributes(
        lambda _, part: getattr(part, "conv_general_dilated", None) is CONV_GRADIENTS["vmap"],
        conv_general_dilated=CONV_GRADIENTS[conv_gradients],
        raise_if_not_found=False,
    )
    abstract.eval()
    graph_eval, _ = nnx.split(abstract)
    abstract.set_attributes(nnx.Dropout, deterministic=False, raise_if_not_found=False)
    graph_tuned, _ = nnx.split(abstract)
    abstract.train()
    graph_train, _ = nnx.split(abstract)
    params_like = nnx.state(abstract, nnx.Param)
    rest_like = nnx.state(abstract, _REST)
    random_like = nnx.state(abstract, nnx.RngState)

    def random_state(key: Array) -> Any:
        """Fresh keys for every stream, so that a step's dropout follows from its key alone."""
        leaves, tree = jax.tree.flatten(random_like)
        fresh = [
            jax.random.split(jax.random.fold_in(key, number), leaf.shape)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for number, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(tree, fresh)

    def merge(graph: Any, variables: Variables, key: Array) -> Any:
        states = [random_state(key)]
        for like, values in ((params_like, variables["params"]), (rest_like, variables["rest"])):
            state = jax.tree.map(lambda leaf: leaf, like)  # a copy: replacing works in place
            nnx.replace_by_pure_dict(state, values)
            states.append(state)
        return nnx.merge(graph, *states)

    def init(key: Key[Array, ""]) -> Variables:
        model = module(key)
        return {
            "params": nnx.to_pure_dict(nnx.state(model, nnx.Param)),
            "rest": nnx.to_pure_dict(nnx.state(model, _REST)),
        }

    def apply_train(variables: Variables, images: Array, key: Array) -> tuple[Array, Variables]:
        model = merge(graph_train, variables, key)
        logits = model(images).astype(jnp.float32)
        return logits, nnx.to_pure_dict(nnx.state(model, _REST))

    def apply_tuned(variables: Variables, images: Array, key: Array) -> Array:
        return merge(graph_tuned, variables, key)(images).astype(jnp.float32)

    def evaluated(*methods: str, without: str = "") -> Callable[[Variables, Array], Array]:
        """The first of these methods that the module has, in evaluation mode."""

        def apply(variables: Variables, images: Array) -> Array:
            model = merge(graph_eval, variables, jax.random.key(0))
            method = next((name for name in methods if hasattr(model, name)), None)
            if method is None:
                raise InputError(
                    f'network.arch = "{config.arch}": has no method features(images) that gives '
                    f"the last layer's inputs [B, F]; add one, or give --{without} False"
                )
            return getattr(model, method)(images).astype(jnp.float32)

        return apply

    return Network(
        init,
        apply_train,
        evaluated("__call__"),
        apply_tuned,
        evaluated("features", without="label_only.features"),
        evaluated("head_inputs", "features", without="trust.laplace"),
        float(getattr(abstract, "head_scale", 1.0)),
    )
