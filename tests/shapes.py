"""What jaxtyping's import hook applies to each function of the package (tests/__init__.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import jax
import numpy as np
from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its arrays checked to have the types and shapes that its signature says.

    The other annotations are mypy's: tests give stand-ins for what is no array. JAX takes NumPy's
    arrays for its own, and so does this. Data classes are left alone, since tests make broken ones
    to see them refused, and JAX makes some of no arrays. Tests that give senseless shapes to see
    them refused turn the check off (the fixture `any_shape`).
    """
    if function.__name__ == "__init__":
        return function
    function.__annotations__ = {
        name: _or_numpy(hint) for name, hint in function.__annotations__.items() if _has_shape(hint)
    }
    return beartype(function)


def _has_shape(hint: Any) -> bool:
    """Whether a hint is an array's with a shape, or made of such."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))


def _or_numpy(hint: Any) -> Any:
    """The hint, and the same of NumPy where it is of JAX; also of tuples."""
    if get_origin(hint) is tuple:
        return tuple[tuple(map(_or_numpy, get_args(hint)))]  # type: ignore[misc]
    if isinstance(hint, type) and issubclass(hint, AbstractArray) and hint.array_type is jax.Array:
        return Union[hint, hint.dtype[np.ndarray, hint.dim_str]]  # noqa: UP007
    return hint
