"""The official archives of CIFAR-10 and CIFAR-100, as downloaded."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lira_jax.data.arrays import Arrays
from lira_jax.data.cache import cached
from lira_jax.errors import InputError


def read(path: Path) -> Arrays:
    """The arrays of an archive of the binary version, under any file name."""
    return cached({path.name: path}, lambda: _decode(path))


def url(name: str) -> str:
    return (
        f"https://www.cs.toronto.edu/~kriz/cifar-{'100' if '100' in name else '10'}-binary.tar.gz"
    )


def _decode(path: Path) -> Arrays:
    """The official archives: records of label byte(s), then 3 × 32 × 32 pixels, channels first."""
    wanted = re.compile(
        r"(data_batch_[1-5]|test_batch|train|test)\.bin|(batches\.meta|fine_label_names)\.txt"
    )
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                base = member.name.rsplit("/", 1)[-1]
                if wanted.fullmatch(base) and (handle := archive.extractfile(member)):
                    members[base] = handle.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error):
        raise InputError(
            f"{path}: truncated, or not a tar archive; data.path takes a folder of Parquet files, "
            "an .npz, or a CIFAR archive: if this is one, download it again from " + url(path.name)
        ) from None

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
            if len(members[base]) % size:
                raise InputError(
                    f"{path}: {base} has {len(members[base])} bytes, no multiple of {size}; "
                    f"download {url(path.name)} again"
                )
        raw = b"".join(members[base] for base in bases)
        records = np.frombuffer(raw, np.uint8).reshape(-1, size)
        images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), records[:, label_bytes - 1].astype(np.int32)

    classes = tuple(members[names].decode("utf-8", "replace").split())
    return Arrays(*split(train), *split([test]), classes)
