"""The arrays that a source of data gives, and the checks that are the same for every source."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lira_jax.errors import InputError, one_line


class Arrays(NamedTuple):
    """What a source gives, before the checks; None stands for absent."""

    x_train: Any
    y_train: Any
    x_test: Any = None
    y_test: Any = None
    classes: tuple[str, ...] | None = None


def checked(arrays: Arrays, where: str) -> tuple[Any, Any, Any, Any, tuple[str, ...]]:
    """x_train, y_train, x_test, y_test, classes in the types that `Dataset` promises.

    Raises:
        InputError: images or labels of another type or shape, or labels that are no classes.
    """
    x_train, y_train = _checked_split(arrays.x_train, arrays.y_train, f"{where}: train")
    if not len(x_train):
        raise InputError(f"{where}: no training images; give a source that holds some")
    if not all(x_train.shape[1:]):
        raise InputError(f"{where}: train images have shape {x_train.shape[1:]}: no pixels")
    x_test, y_test = arrays.x_test, arrays.y_test
    if (x_test is None) != (y_test is None):
        raise InputError(f"{where}: has one of x_test and y_test; give both or neither")
    if x_test is None or (np.size(x_test) == 0 and np.size(y_test) == 0):
        x_test, y_test = np.empty((0, *x_train.shape[1:]), np.uint8), np.empty(0, np.int32)
    x_test, y_test = _checked_split(x_test, y_test, f"{where}: test")
    if x_test.shape[1:] != x_train.shape[1:]:
        raise InputError(
            f"{where}: test images are {x_test.shape[1:]}, training images {x_train.shape[1:]} "
            "(height, width, channels); make them one size"
        )

    present = np.unique(np.concatenate([np.unique(y_train), np.unique(y_test)]))
    classes = arrays.classes
    if classes is None:
        # A guard against identifiers taken for labels, and against overflow below.
        if present[-1] >= len(x_train):
            raise InputError(
                f"{where}: labels reach {present[-1]}, with {len(x_train)} training images; "
                "number the classes 0, 1, …, K-1"
            )
        classes = tuple(str(label) for label in range(max(int(present[-1]), 0) + 1))
    if present[0] < 0 or present[-1] >= len(classes):
        bad = present[0] if present[0] < 0 else present[-1]
        split, labels = ("train", y_train) if bad in y_train else ("test", y_test)
        raise InputError(
            f"{where}: {split} label {bad} in row {int(np.argmax(labels == bad))} is outside the "
            f"classes 0…{len(classes) - 1}; correct it or remove that image"
        )
    if len(np.unique(y_train)) < 2:
        raise InputError(
            f"{where}: the training images are all of one class; a classifier needs two or more"
        )
    return x_train, np.array(y_train, np.int32), x_test, np.array(y_test, np.int32), classes


def _checked_split(x: Any, y: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images as uint8 [E, H, W, C] and labels as integers [E]."""
    try:
        x, y = np.asanyarray(x), np.asanyarray(y)
    except ValueError:
        raise InputError(f"{where} images or labels are ragged; make all of one shape") from None
    except Exception as error:  # whatever the objects of a user's function do
        raise InputError(
            f"{where} images or labels are no arrays ({one_line(error)}); give NumPy arrays"
        ) from error
    if np.issubdtype(x.dtype, np.floating):
        raise InputError(
            f"{where} images are {x.dtype}; give uint8 0…255 (values in [0, 1]: "
            "multiply by 255, round and store as uint8)"
        )
    if x.dtype != np.uint8:
        raise InputError(f"{where} images are {x.dtype}; give uint8, values 0…255")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4:
        raise InputError(
            f"{where} images have shape {x.shape}; "
            "give [images, height, width, channels] or [images, height, width]"
        )
    if y.dtype.kind not in "iu":
        raise InputError(f"{where} labels are {y.dtype}; give integers 0, 1, …, K-1")
    if y.ndim != 1:
        raise InputError(f"{where} labels have shape {y.shape}; give one number per image")
    if len(x) != len(y):
        raise InputError(f"{where} has {len(x)} images but {len(y)} labels; give one per image")
    # Before labels of two types meet, which NumPy would turn into floats.
    beyond = (y < -(2**31)) | (y >= 2**31)
    if beyond.any():
        row = int(np.argmax(beyond))
        raise InputError(
            f"{where} label {y[row]} in row {row} is beyond 32 bits; number the classes 0, 1, …, "
            "K-1"
        )
    return x, y.astype(np.int64)
