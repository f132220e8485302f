"""Every stream of random numbers of a run, in one table, so that no two are ever the same.

Each is a function of the run's seed. JAX's keys are `jax.random.key(seed)`, into which numbers are
folded one after the other; n is the number of a model, `epoch` and `step` count from its beginning:

| numbers | draws | used by |
|---|---|---|
| n, `INIT` | initial weights of model n | `shadow_models` |
| n, `ORDER`, epoch | the order of its members; with DP-SGD, its batches | `shadow_models` |
| n, `AUGMENT`, step | how the images of a batch are altered | `shadow_models` |
| n, `DROPOUT`, step | dropout, and the noise of DP-SGD | `shadow_models` |
| n, `ADVERSARY` | initial weights of its inference network | `shadow_models` |
| n, `HELD_OUT`, step | that network's held-out images, their views, dropout | `shadow_models` |
| `NOISY_QUERIES`, example | noise of the noisy copies whose losses are compared | `scoring` |
| `LABEL_NOISE`, example | noise of copies whose labels are asked | `label_only.asking` |
| `LABEL_FLIPS`, example | pixels that are flipped in such copies | `label_only.asking` |
| `BOUNDARY`, copy, example | the search for the decision boundary | `label_only.asking` |
| `LAPLACE`, n, input | weights of the last layer's posterior | `trust.predicting` |

NumPy's generators are those of the functions below. What the attack stage draws it draws from a
hash of the scores (`attacks.draws`), or with a seed of its own that is an argument or 0.
"""

from __future__ import annotations

import zlib

import numpy as np

# Of one model; 4 is free.
INIT, ORDER, AUGMENT, DROPOUT, ADVERSARY, HELD_OUT = 0, 1, 2, 3, 5, 6
# Of all models together: no model has these numbers.
NOISY_QUERIES, LABEL_NOISE, LABEL_FLIPS, BOUNDARY, LAPLACE = (2**31 - n for n in range(1, 6))


def masks(seed: int, block: int) -> np.random.Generator:
    """Which examples the models of a block train on (`data.membership`)."""
    return np.random.default_rng((seed, block))


def probes(seed: int, model: int) -> np.random.Generator:
    """On which examples a model's accuracy is logged (`shadow_models`)."""
    return np.random.default_rng((seed, model, 1))


def canaries(seed: int) -> np.random.Generator:
    """Which images become canaries, their labels and noise (`data`)."""
    return np.random.default_rng((seed, 0, 2))


def judges(seed: int) -> np.random.Generator:
    """By which held-out images early stopping judges (`defences.early_stopping`)."""
    return np.random.default_rng((seed, 0, 3))


def trust_inputs(seed: int, kind: str) -> np.random.Generator:
    """Inputs of one kind on which confidence is looked at (`trust.inputs`)."""
    return np.random.default_rng((seed, 0, 4, zlib.crc32(kind.encode())))
