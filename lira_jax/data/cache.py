"""What must be decoded is decoded once, and kept as `.npy` files.

They lie in the user's cache folder (on Linux `$XDG_CACHE_HOME/lira_jax/datasets`, by default
`~/.cache`), under a key made from the source's file names and contents: an edited source is decoded
again, copies of one source share an entry. Every file ends in its checksum, which is compared each
time; what is damaged is decoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from lira_jax import foreign
from lira_jax.data.arrays import Arrays
from lira_jax.errors import InputError, one_line
from lira_jax.storage import read_array, read_checked, write_array, write_checked

_CACHE_VERSION = 2  # raise it when a decoder's output or the files of the cache change
_REMEDY = "the source is decoded again"


def cached(files: Mapping[str, Path], decode: Callable[[], Arrays]) -> Arrays:
    """The decoded arrays of a source that consists of `files` (relative name: path).

    Images come back as read-only memory maps. Where the cache cannot be written, says so on
    stderr and returns the decoded arrays themselves.
    """
    folder = platformdirs.user_cache_path("lira_jax") / "datasets" / _key(files)
    if folder.exists():
        try:
            return _read_cache(folder)
        except InputError as error:
            print(f"{folder}: damaged cache ({one_line(error)}); decoding again", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
    arrays = decode()
    try:
        _write_cache(folder, arrays)
        return _read_cache(folder)
    except (OSError, InputError) as error:
        print(f"{folder}: not cached ({one_line(error)}); goes on without", file=sys.stderr)
        return arrays


def _key(files: Mapping[str, Path]) -> str:
    """SHA-256 over the names and contents of `files`, in hex."""
    key = hashlib.sha256(f"{_CACHE_VERSION}".encode())
    for name, file in sorted(files.items()):
        foreign.check_regular(file, "remove it, or put the file itself there")
        with foreign.reading(file, "check its rights", "cannot be read"), file.open("rb") as handle:
            # Not more than it has: some files of the system have no end.
            content, left = hashlib.sha256(), file.stat().st_size
            while left and (block := handle.read(min(left, 2**22))):
                content.update(block)
                left -= len(block)
        key.update(f"\n{name}\n{content.hexdigest()}".encode())
    return key.hexdigest()


def _write_cache(folder: Path, arrays: Arrays) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        about: dict[str, Any] = {"classes": arrays.classes}
        for field in Arrays._fields[:4]:
            array = getattr(arrays, field)
            write_array(new / f"{field}.npy", array, {"source": folder.name, "holds": field})
            about[field] = [str(array.dtype), *array.shape]
        text = json.dumps(about).encode()
        write_checked(new / "about.json", operator.methodcaller("write", text))
        # Where another process was faster the rename fails, and its folder has the same content.
        with contextlib.suppress(OSError):
            new.rename(folder)


def _read_cache(folder: Path) -> Arrays:
    """Raises InputError where any of it is missing, damaged or not what was written."""
    for name in ("about.json", *(f"{field}.npy" for field in Arrays._fields[:4])):
        foreign.check_regular(folder / name)
    with foreign.reading(folder, _REMEDY):
        about = json.loads(read_checked(folder / "about.json", _REMEDY))
        arrays = {}
        for field in Arrays._fields[:4]:
            dtype, *shape = about[field]
            own = {"source": folder.name, "holds": field}
            arrays[field] = read_array(folder / f"{field}.npy", dtype, shape, _REMEDY, own)
        return Arrays(**arrays, classes=about["classes"] and tuple(about["classes"]))
