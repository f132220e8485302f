"""The official archives give the arrays that were put into them; bad ones get a single line."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np

from lira_jax.config import DataConfig
from lira_jax.data import datasets
from tests.data.synthetic import arrays, check, refused


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz") as archive:
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
    write_tar(file, members | {"cifar-10-batches-bin/batches.meta.txt": b"airplane\nbird\n"})
    refused(config, str(file), "train label 2 in row 2", "0…1")
