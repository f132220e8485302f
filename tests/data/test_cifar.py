"""The official archives give the arrays that were put into them; bad ones get a single line."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_jax.config import DataConfig
from lira_jax.data import cifar, datasets
from lira_jax.data.arrays import Arrays
from lira_jax.errors import InputError
from tests.data.synthetic import arrays, check, refused


def write_tar(file: Path, members: dict[str, bytes], compression: str = "gz") -> None:
    with tarfile.open(file, f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def cifar10_members(images: np.ndarray, labels: np.ndarray) -> dict[str, bytes]:
    """Two images to each of five batches, the rest to the test batch."""
    records = np.hstack(
        [labels[:, None].astype(np.uint8), images.transpose(0, 3, 1, 2).reshape(len(images), -1)]
    )
    folder = "cifar-10-batches-bin"
    members = {
        f"{folder}/data_batch_{i + 1}.bin": records[2 * i : 2 * i + 2].tobytes() for i in range(5)
    }
    members[f"{folder}/test_batch.bin"] = records[10:].tobytes()
    members[f"{folder}/batches.meta.txt"] = b"airplane\nautomobile\nbird\n\n"
    return members


def test_cifar10_archive_under_any_file_name(tmp_path: Path) -> None:
    images, labels = arrays(13, (32, 32, 3))
    write_tar(tmp_path / "mine.tgz", cifar10_members(images, labels))
    dataset = datasets.load(DataConfig(path=str(tmp_path / "mine.tgz")))
    train, test = (images[:10], labels[:10]), (images[10:], labels[10:])
    check(dataset, train, test, ["airplane", "automobile", "bird"])
    assert dataset.name == "mine.tgz"


def test_cifar100_archive_takes_the_fine_labels(tmp_path: Path) -> None:
    images, labels = arrays(6, (32, 32, 3), classes=4)
    coarse = np.full((6, 1), 7, np.uint8)
    pixels = images.transpose(0, 3, 1, 2).reshape(6, -1)
    records = np.hstack([coarse, labels[:, None].astype(np.uint8), pixels])
    members = {
        "cifar-100-binary/train.bin": records[:4].tobytes(),
        "cifar-100-binary/test.bin": records[4:].tobytes(),
        "cifar-100-binary/coarse_label_names.txt": b"fish\n",
        "cifar-100-binary/fine_label_names.txt": b"apple\nbaby\nbear\nbed\n",
    }
    write_tar(tmp_path / "a.tar.gz", members)
    dataset = datasets.load(DataConfig(name="CIFAR-100", path=str(tmp_path / "a.tar.gz")))
    train, test = (images[:4], labels[:4]), (images[4:], labels[4:])
    check(dataset, train, test, ["apple", "baby", "bear", "bed"])
    assert dataset.name == "CIFAR-100"


def test_bad_archives(tmp_path: Path) -> None:
    file = tmp_path / "cifar-10-binary.tar.gz"
    config = DataConfig(path=str(file))
    members = cifar10_members(*arrays(13, (32, 32, 3)))
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"

    write_tar(file, members)
    file.write_bytes(file.read_bytes()[:20_000])
    refused(config, str(file), "not a tar archive", url)
    file.write_bytes(b"<html>404</html>")
    refused(config, str(file), "not a tar archive", url)
    file.write_bytes(b"")
    refused(config, str(file), "not a tar archive", url)
    write_tar(file, {"cifar-10-batches-py/data_batch_1": b"pickle"})
    refused(config, str(file), "data_batch_1.bin", "binary version", url)
    batch = "cifar-10-batches-bin/data_batch_3.bin"
    write_tar(file, members | {batch: members[batch][:-1]})
    refused(config, str(file), "data_batch_3.bin has 6145 bytes", url)
    write_tar(file, members | {batch: b""})
    refused(config, str(file), "data_batch_3.bin has 0 bytes", url)
    write_tar(file, members | {"cifar-10-batches-bin/batches.meta.txt": b"airplane\nbird\n"})
    refused(config, str(file), "train label 2 in row 2", "0…1")


def same(found: Arrays, expected: Arrays) -> bool:
    return found.classes == expected.classes and all(
        np.array_equal(*pair) for pair in zip(found[:4], expected[:4], strict=True)
    )


@pytest.mark.parametrize("compression", ["gz", "xz", "bz2"])
def test_a_byte_flipped_anywhere_is_refused_or_changes_nothing(
    tmp_path: Path, compression: str
) -> None:
    file = tmp_path / "cifar.tar"
    write_tar(file, cifar10_members(*arrays(13, (32, 32, 3))), compression)
    expected, whole = cifar._decode(file), file.read_bytes()
    refusals = 0
    places = np.random.default_rng(0).integers(0, len(whole), 150)
    for place in [*range(40), *range(len(whole) - 40, len(whole)), *places]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            assert same(cifar._decode(file), expected), place
        except InputError:
            refusals += 1
    assert refusals > 200
    for size in range(0, len(whole), 1009):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError):
            cifar._decode(file)


def raw_tar(file: Path, *members: tarfile.TarInfo) -> None:
    """Headers without contents."""
    with gzip.open(file, "wb") as stream:
        for member in members:
            stream.write(member.tobuf(tarfile.GNU_FORMAT))
        stream.write(bytes(1024))


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_links_bombs_and_endless_archives_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.tar.gz"
    raw_tar(file, member("train.bin", type=tarfile.SYMTYPE, linkname="nowhere"))
    refused(DataConfig(path=str(file)), "holds no data_batch_1.bin")
    raw_tar(file, member("train.bin", type=tarfile.LNKTYPE, linkname="train.bin"))
    refused(DataConfig(path=str(file)), "holds no data_batch_1.bin")
    raw_tar(file, member("train.bin", size=2**40))
    refused(DataConfig(path=str(file)), "train.bin claims 1099511627776 bytes")
    raw_tar(file, *[member("test.bin")] * 2)
    refused(DataConfig(path=str(file)), "holds test.bin twice")
    raw_tar(file, *[member("other")] * 1001)
    refused(DataConfig(path=str(file)), "more than 1000 members")
    monkeypatch.setattr(cifar, "_MOST_BYTES", 10**6)
    with gzip.open(file, "wb") as stream:
        stream.write(bytes(10**6 + 1))
    refused(DataConfig(path=str(file)), "more than 1000000 bytes")
