"""What must be decoded is decoded once, and kept as `.npy` files.

They lie in the user's cache folder (on Linux `$XDG_CACHE_HOME/lira_jax/datasets`, by default
`~/.cache`), under a key made from the source's file names and contents: an edited source is decoded
again, copies of one source share an entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from lira_jax.data.arrays import Arrays
from lira_jax.errors import InputError, one_line

_CACHE_VERSION = 1  # raise it when a decoder's output changes

# What NumPy and json raise for missing, truncated and foreign files.
_DAMAGED = (OSError, EOFError, ValueError, LookupError, TypeError)


def cached(files: Mapping[str, Path], decode: Callable[[], Arrays]) -> Arrays:
    """The decoded arrays of a source that consists of `files` (relative name: path).

    Images come back as read-only memory maps. Where the cache cannot be written, says so on
    stderr and returns the decoded arrays themselves.
    """
    folder = platformdirs.user_cache_path("lira_jax") / "datasets" / _key(files)
    if folder.exists():
        try:
            return _read_cache(folder)
        except _DAMAGED as error:
            print(f"{folder}: damaged cache ({one_line(error)}); decoding again", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
    arrays = decode()
    try:
        _write_cache(folder, arrays)
        return _read_cache(folder)
    except _DAMAGED as error:
        print(f"{folder}: not cached ({one_line(error)}); goes on without", file=sys.stderr)
        return arrays


def _key(files: Mapping[str, Path]) -> str:
    """SHA-256 over the names and contents of `files`, in hex."""
    key = hashlib.sha256(f"{_CACHE_VERSION}".encode())
    for name, file in sorted(files.items()):
        try:
            with file.open("rb") as handle:
                content = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise InputError(
                f"{file}: cannot be read ({one_line(error)}); check its rights"
            ) from None
        key.update(f"\n{name}\n{content}".encode())
    return key.hexdigest()


def _write_cache(folder: Path, arrays: Arrays) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        about: dict[str, Any] = {"classes": arrays.classes}
        for field in Arrays._fields[:4]:
            array = getattr(arrays, field)
            np.save(new / f"{field}.npy", array)
            about[field] = [str(array.dtype), *array.shape]
        (new / "about.json").write_text(json.dumps(about), encoding="utf-8")
        # Where another process was faster the rename fails, and its folder has the same content.
        with contextlib.suppress(OSError):
            new.rename(folder)


def _read_cache(folder: Path) -> Arrays:
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    arrays = {}
    for field in Arrays._fields[:4]:
        array = np.load(folder / f"{field}.npy", mmap_mode="r", allow_pickle=False)
        if [str(array.dtype), *array.shape] != about[field]:
            raise ValueError(f"{field}.npy is {array.dtype} {array.shape}, not {about[field]}")
        arrays[field] = array
    return Arrays(**arrays, classes=about["classes"] and tuple(about["classes"]))
