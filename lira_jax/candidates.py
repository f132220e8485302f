"""Data and masks of an experiment, put together, and the network that fits them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int32, UInt8

from lira_jax import ensemble, networks
from lira_jax.config import Experiment, check, keep_fraction
from lira_jax.data import datasets, membership
from lira_jax.data.datasets import Dataset
from lira_jax.data.views import check_shift
from lira_jax.defences import dp_sgd
from lira_jax.errors import InputError
from lira_jax.networks import Network


@dataclass(frozen=True)
class Candidates:
    """The examples whose membership is in question.

    Attributes:
        images: uint8 [E, H, W, C].
        labels: int32 [E].
        classes: K.
        keep: bool [N, E], which model trains on which.
        digest: of the data.
        available: examples before the last few were left out to make equal folds.
        canaries: of the examples, the last so many were inserted to be memorised.
        held_out: images uint8 [H, …] and labels int32 [H] that are no candidates, where a defence
            needs them.
    """

    images: UInt8[np.ndarray, "E H W C"]
    labels: Int32[np.ndarray, "E"]
    classes: int
    keep: Bool[np.ndarray, "N E"]
    digest: str
    available: int
    canaries: int = 0
    held_out: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.images.shape[1:]
        return height, width, channels


def candidates(experiment: Experiment) -> Candidates:
    """Load the data of an experiment and draw its masks.

    The last few training images are left out, so that B folds share the rest and the canaries,
    which come last, equally.

    Raises:
        InputError: data or settings that do not fit.
    """
    check(experiment)
    data: Dataset = datasets.load(experiment.data, experiment.seed)
    kept_folds, block = keep_fraction(experiment.train.keep)
    images, labels = datasets.in_equal_folds(data, block)
    keep = membership.blocked_masks(
        experiment.seed, experiment.train.models, len(labels), kept_folds, block
    )
    examples = Candidates(
        images=images,
        labels=labels,
        classes=len(data.classes),
        keep=keep,
        digest=data.digest,
        available=len(data.x_train) + len(data.x_canary),
        canaries=len(data.x_canary),
        held_out=_held_out(experiment, data),
    )
    members = int(keep[0].sum())
    if experiment.train.batch_size > members:
        raise InputError(
            f"train.batch_size = {experiment.train.batch_size}: each model has only {members} "
            "training examples; give a smaller batch"
        )
    check_shift(experiment.train.shift, examples.image_shape, "train.shift")
    if experiment.train.cutout > min(examples.image_shape[:2]):
        raise InputError(
            f"train.cutout = {experiment.train.cutout}: larger than images of "
            f"{examples.image_shape[0]}×{examples.image_shape[1]}"
        )
    return examples


def _held_out(experiment: Experiment, data: Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    """Images and labels that are no candidates, if a defence needs them."""
    defence = experiment.defence
    for name in ("early_stopping", "adversarial"):
        value = getattr(defence, name)
        if value and not len(data.y_held_out):
            raise InputError(
                f"defence.{name} = {value}: needs held-out images, and {data.name} has no test "
                "split left for it; set data.limit so that some training images are left over"
            )
    if defence.early_stopping or defence.adversarial:
        return data.x_held_out, data.y_held_out
    return None


def build_network(experiment: Experiment, data: Candidates) -> Network:
    """The network of an experiment for its images and classes."""
    gradients = experiment.train.conv_gradients
    network = networks.build(
        experiment.network,
        data.image_shape,
        data.classes,
        experiment.train.dtype,
        experiment.defence.dropout,
        "vmap" if gradients == "auto" else gradients,  # training settles it first, see `ways`
    )
    if experiment.defence.dp_clip:
        dp_sgd.check_network(network, experiment.network.arch)
    return network


def place(data: Candidates, mesh: Mesh) -> tuple[Array, Array]:
    """Images and labels on every device."""
    return ensemble.put_shared((np.asarray(data.images), data.labels), mesh)
