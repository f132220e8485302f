"""Where `[data]` reads arrays from: by name or by path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lira_jax import foreign
from lira_jax.array_files import read_npz
from lira_jax.config import DataConfig
from lira_jax.data import cifar, parquet, tfds
from lira_jax.data.arrays import Arrays
from lira_jax.errors import InputError
from lira_jax.user_code import import_function, running


def read(config: DataConfig) -> tuple[str, str, Arrays]:
    """A title, a place for messages, and the arrays; `path`, if not empty, wins over `name`.

    Raises:
        InputError: no such source, or one that is truncated or foreign.
    """
    if not config.path:
        where = f'data.name = "{config.name}"'
        return config.name, where, _by_name(config.name, where)
    with foreign.reading(f'data.path = "{config.path}"', "check data.path", "no usable path"):
        path = Path(config.path).expanduser()
        path.exists()
    # With a path, `name` is only a title, and the default would be a false one.
    name = path.name if config.name == DataConfig.name else config.name
    return name, str(path), _by_path(path)


def _by_name(name: str, where: str) -> Arrays:
    if name == "digits":
        from sklearn.datasets import load_digits  # slow to import

        digits: Any = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        return Arrays(images, digits.target, classes=tuple(map(str, digits.target_names)))
    if ":" in name:
        return _from_function(name, where)
    if not re.fullmatch(r"\w+(/[\w.+-]+)?", name) or Path(name).is_file():
        raise InputError(
            f"{where}: not a name; give digits, a TFDS name such as cifar10, or "
            "package.module:function (a file or folder goes into data.path)"
        )
    return tfds.read(name)


def _by_path(path: Path) -> Arrays:
    if not path.exists():
        hint = f"download it from {cifar.url(path.name)}" if "cifar" in path.name.lower() else ""
        raise InputError(f"{path}: no such file or folder; {hint or 'check data.path'}")
    if path.is_dir():
        return parquet.read(path)
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.suffix == ".parquet":
        raise InputError(f"{path}: set data.path to the folder that holds the Parquet files")
    foreign.check_regular(path, "data.path takes a folder of Parquet files, an .npz, or an archive")
    return cifar.read(path)


def _from_function(name: str, where: str) -> Arrays:
    """What the user's own "package.module:function" returns."""
    function = import_function(name, "data.name")
    with running(where, "it must work without arguments"):
        result = function()
        if all(hasattr(result, field) for field in Arrays._fields):  # a Dataset
            return Arrays(*(getattr(result, field) for field in Arrays._fields))
        if isinstance(result, Mapping) and {"x_train", "y_train"} <= set(result):
            return Arrays(*(result.get(field) for field in Arrays._fields[:4]))
        if isinstance(result, (tuple, list)) and len(result) == 4:
            return Arrays(*result)
    raise InputError(
        f"{where}: returned {type(result).__name__}; return (x_train, y_train, x_test, y_test), "
        "a mapping with these keys, or a lira_jax.data.datasets.Dataset"
    )


def _from_npz(path: Path) -> Arrays:
    advice = "write it again with numpy.savez(FILE, x_train=…, y_train=…, x_test=…, y_test=…)"
    arrays: dict[str, Any] = read_npz(path, Arrays._fields[:4], advice)
    if missing := [key for key in ("x_train", "y_train") if key not in arrays]:
        raise InputError(
            f"{path}: holds no {' and no '.join(missing)}; "
            "needed are x_train and y_train, and x_test and y_test if there is a test set"
        )
    return Arrays(**arrays)
