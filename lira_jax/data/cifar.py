"""The official archives of CIFAR-10 and CIFAR-100, as downloaded."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lira_jax import foreign
from lira_jax.data.arrays import Arrays
from lira_jax.data.cache import cached
from lira_jax.errors import InputError

# Three times what the official archives come to: 184 MB in 8 members.
_MOST_BYTES, _MOST_MEMBERS = 2**29, 1000
_WANTED = re.compile(
    r"(data_batch_[1-5]|test_batch|train|test)\.bin|(batches\.meta|fine_label_names)\.txt"
)


def read(path: Path) -> Arrays:
    """The arrays of an archive of the binary version, under any file name."""
    return cached({path.name: path}, lambda: _decode(path))


def url(name: str) -> str:
    return (
        f"https://www.cs.toronto.edu/~kriz/cifar-{'100' if '100' in name else '10'}-binary.tar.gz"
    )


def _decode(path: Path) -> Arrays:
    """The official archives: records of label byte(s), then 3 × 32 × 32 pixels, channels first."""
    advice = (
        "data.path takes a folder of Parquet files, an .npz, or a CIFAR archive: if this is one, "
        "download it again from " + url(path.name)
    )
    with foreign.reading(path, advice, "damaged, or not a tar archive"):
        members = _members(path)

    # The label that counts is the record's last: CIFAR-100 has the coarse one before it.
    if "train.bin" in members or "fine_label_names.txt" in members:
        train, test, names, label_bytes = ["train.bin"], "test.bin", "fine_label_names.txt", 2
    else:
        train = [f"data_batch_{index}.bin" for index in range(1, 6)]
        test, names, label_bytes = "test_batch.bin", "batches.meta.txt", 1
    if missing := [base for base in (*train, test, names) if base not in members]:
        raise InputError(
            f"{path}: holds no {', '.join(missing)}, so it is not a complete CIFAR archive of the "
            f"binary version; download {url(path.name)}"
        )

    def split(bases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        size = label_bytes + 3 * 32 * 32
        for base in bases:
            if not members[base] or len(members[base]) % size:
                raise InputError(
                    f"{path}: {base} has {len(members[base])} bytes, not some times {size}; "
                    f"download {url(path.name)} again"
                )
        raw = b"".join(members[base] for base in bases)
        records = np.frombuffer(raw, np.uint8).reshape(-1, size)
        images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), records[:, label_bytes - 1].astype(np.int32)

    classes = tuple(members[names].decode("utf-8", "replace").split())
    return Arrays(*split(train), *split([test]), classes)


def _members(path: Path) -> dict[str, bytes]:
    """The wanted members of an archive by their base names, whose compression ends as it should."""
    members: dict[str, bytes] = {}
    with path.open("rb") as file, _decompressed(file) as content:
        stream = _Bounded(content)
        # As a stream it is read once and forwards, whatever its headers say of places and links.
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for count, member in enumerate(archive):
                if count == _MOST_MEMBERS:
                    raise ValueError(f"more than {_MOST_MEMBERS} members")
                base = member.name.rsplit("/", 1)[-1]
                if not _WANTED.fullmatch(base) or not member.isfile():
                    continue
                if base in members:
                    raise ValueError(f"holds {base} twice")
                # A sparse member may claim more than the stream has.
                if member.size + sum(map(len, members.values())) > _MOST_BYTES:
                    raise ValueError(f"{base} claims {member.size} bytes")
                handle = archive.extractfile(member)
                assert handle is not None  # a file
                members[base] = handle.read()
        while stream.read(2**20):  # the checksum comes after all that tarfile reads
            pass
    return members


def _decompressed(file: BinaryIO) -> Any:
    """What an archive holds before compression, whose checksums are compared at its end."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if start.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if start == b"\xfd7zXZ\0":
        return lzma.LZMAFile(file, format=lzma.FORMAT_XZ)
    return file


class _Bounded:
    """A stream of which no more than `_MOST_BYTES` are read."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.left = stream, _MOST_BYTES

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f"more than {_MOST_BYTES} bytes; CIFAR is 184 MB")
        return content
