"""Points made to be memorised, inserted at the end of the examples (LiRA, figure 13).

| `canary_kind` | images                                            | labels                      |
|---------------|---------------------------------------------------|-----------------------------|
| mislabelled   | n of the first of these that has n: test images,  | any class but the right one |
|               | training images beyond `limit`, the last training |                             |
|               | images, which are then taken from the examples    |                             |
| noise         | uniform random pixels                             | any class                   |

So no image is there twice, with its right label and with a wrong one.
"""

from __future__ import annotations

import math

import numpy as np

from lira_jax import foreign, random_streams
from lira_jax.config import DataConfig
from lira_jax.errors import InputError

# Figures of canaries and of the other examples are reported apart, and need some of each.
FEWEST_NATURAL = 10

Labelled = tuple[np.ndarray, np.ndarray]  # uint8 [E, H, W, C] and int32 [E]


def insert(
    config: DataConfig,
    seed: int,
    train: Labelled,
    pools: list[Labelled],
    classes: int,
    where: str,
) -> tuple[Labelled, Labelled, list[Labelled]]:
    """The training images that stay, the canaries, and what stays of the pools.

    Raises:
        InputError: fewer than FEWEST_NATURAL training images would stay, or images of one class;
            or more canaries than memory holds.
    """
    count, (x_train, y_train) = config.canaries, train
    random = random_streams.canaries(seed)
    if config.canary_kind == "noise":
        _refuse_few(count, len(y_train), 0, where)
        # The canaries, and all examples once more where they are put together.
        needed = (2 * count + len(x_train)) * math.prod(x_train.shape[1:])
        foreign.check_memory(f"data.canaries = {count}: need", needed, "give fewer")
        pixels = random.integers(0, 256, (count, *x_train.shape[1:]), np.uint8)
        return train, (pixels, random.integers(0, classes, count, np.int32)), pools
    place = next((place for place, pool in enumerate(pools) if len(pool[1]) >= count), None)
    _refuse_few(count, len(y_train), count if place is None else 0, where)
    if place is None:
        left = len(y_train) - count
        if len(np.unique(y_train[:left])) < 2:
            raise InputError(
                f"data.canaries = {count}: they would be taken from the {len(y_train)} training "
                f"images of {where}, of which those of one class would be left; give fewer"
            )
        pool, train = (x_train[left:], y_train[left:]), (x_train[:left], y_train[:left])
    else:
        pool = pools[place]
    chosen = np.sort(random.choice(len(pool[1]), count, replace=False))
    wrong = (pool[1][chosen] + random.integers(1, classes, count)) % classes
    if place is not None:
        rest = np.delete(pool[0], chosen, 0), np.delete(pool[1], chosen)
        pools = [*pools[:place], rest, *pools[place + 1 :]]
    return train, (pool[0][chosen], wrong.astype(np.int32)), pools


def _refuse_few(count: int, available: int, taken: int, where: str) -> None:
    """Refuse canaries of which `taken` come from the training images, if these are too few."""
    if available - taken >= FEWEST_NATURAL:
        return
    enough = available - FEWEST_NATURAL
    raise InputError(
        f"data.canaries = {count}: {max(available - taken, 0)} training images of {where} would "
        f"stay beside them, and at least {FEWEST_NATURAL} must; "
        + (f"give at most {enough} canaries" if enough > 0 else "give more images, or no canaries")
    )
