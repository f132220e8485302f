"""NumPy's files from elsewhere: `.npz` and `.npy`, held to what they declare, then read.

A header may claim any shape and any type, and a member of an archive any size; so the shape must
come to exactly the bytes that are there, and those must be no bomb, before an array is made. Every
member is read to its end, where its checksum is. No JAX.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lira_jax import foreign
from lira_jax.errors import InputError


def read_npz(path: Path, names: Iterable[str], advice: str) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz`, as far as it holds them; others are passed over.

    Args:
        path: the file.
        names: of the arrays.
        advice: what the user should do, for messages.

    Returns:
        Arrays in C order and this machine's byte order, of any type but records and objects.

    Raises:
        InputError: no regular file or no readable `.npz`; an array that is there twice, damaged,
            not as large as it says, larger than memory, a bomb, or not of plain elements.
    """
    foreign.check_regular(path, advice)
    arrays = {}
    with (
        foreign.reading(path, advice, "truncated, or not an .npz file"),
        path.open("rb") as file,
    ):
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise InputError(f"{path}: one bare array, not an .npz file; {advice}")
        size = file.seek(0, 2)
        with zipfile.ZipFile(file) as archive:
            # The directory has no checksum, and damage there must not make an array disappear: its
            # names are also beside the contents, and a comment, which NumPy never writes, may be
            # entries swallowed.
            for member in archive.infolist():
                if member.comment:
                    raise ValueError(f"a comment on {member.filename}")
                archive.open(member).close()
            wanted = {
                name: [member for member in archive.infolist() if member.filename == f"{name}.npy"]
                for name in names
            }
            members = {name: same for name, same in wanted.items() if same}
            # Members may share bytes of the file, so that together they claim more than each.
            total = sum(member.file_size for same in members.values() for member in same)
            foreign.check_size(path, total, size, advice)
            for name, (member, *others) in members.items():
                if others:
                    raise InputError(f"{path}: holds `{name}` twice; {advice}")
                given = min(member.compress_size, size)
                foreign.check_size(f"{path}: `{name}`", member.file_size, given, advice)
                with foreign.reading(path, advice, f"`{name}` is truncated or damaged"):
                    arrays[name] = _read_member(archive, member, f"{path}: `{name}`")
    return arrays


def map_npy(path: Path, advice: str) -> np.ndarray:
    """Memory-map an `.npy` that is exactly as long as its header says.

    Args:
        path: the file.
        advice: what the user should do, for messages.

    Raises:
        InputError: no regular file, or no `.npy` of plain elements of that length.
    """
    foreign.check_regular(path, advice)
    with foreign.reading(path, advice, "truncated, or not a plain .npy array"):
        with path.open("rb") as file:
            size = _header_size(file, str(path))
            if (actual := file.seek(0, 2)) != size:
                raise ValueError(f"{actual} bytes, of which its header makes {size}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.lib.format.open_memmap(path, "r")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> np.ndarray:
    with archive.open(member) as stream:
        if (size := _header_size(stream, where)) != member.file_size:
            raise ValueError(f"{member.file_size} bytes, of which its header makes {size}")
    with archive.open(member) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # the checksum is compared where the end is met
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _header_size(stream: Any, where: str) -> int:
    """The bytes of an `.npy` file by its header, which is read; elements must be plain."""
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
    }  # fmt: skip
    if version not in readers:  # the third is for records with names beyond Latin letters
        raise ValueError(f"version {version} of the format")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, about headers of Python 2
        shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise InputError(f"{where} holds Python objects; save a plain numeric array")
    if dtype.names or dtype.subdtype or not dtype.itemsize:
        raise InputError(f"{where} is {dtype}; save a plain numeric array")
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {shape}")
    return stream.tell() + math.prod(shape) * dtype.itemsize
