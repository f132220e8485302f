"""Every source gives the arrays that were put into it; every bad one gets a single line."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import socket
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lira_jax.config import DataConfig
from lira_jax.data import datasets
from lira_jax.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
REAL = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache and a TFDS folder of this test's own, and no network."""
    tried: list[Any] = []

    def refuse(*target: Any, **_: Any) -> None:
        tried.append(target)
        raise OSError("no network here")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield tmp_path / "cache" / "lira_jax" / "datasets"
    assert not tried  # also where a library swallowed the error


def arrays(count: int, shape: tuple[int, ...], classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Random uint8 images [count, *shape], and labels that run through the classes in turn."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % classes


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    file: Path,
    images: Sequence[Any],
    labels: Any,
    names: Sequence[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
) -> None:
    """Images (arrays, or bytes as they are) in the Hugging Face layout, two rows a group."""
    cells = [{"bytes": png(x) if isinstance(x, np.ndarray) else x, "path": None} for x in images]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    label = labels if isinstance(labels, pa.Array) else pa.array(np.asarray(labels))
    table = pa.table({columns[0]: pa.array(cells, struct), columns[1]: label})
    if names:
        about = {"info": {"features": {columns[1]: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=2)


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


def write_tfds(folder: Path, splits: dict[str, tuple[Any, Any]], names: Sequence[str]) -> None:
    """A real TFDS data set in array_record format, written without TensorFlow.

    The image bytes come as open files, because encoding arrays would need TensorFlow.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity, DatasetInfo
    from tensorflow_datasets.core.sequential_writer import SequentialWriter

    data_dir = folder / "tiny" / "1.0.0"
    data_dir.mkdir(parents=True)
    shape = splits["train"][0].shape[1:]
    info = DatasetInfo(
        builder=DatasetIdentity(
            name="tiny",
            version=tfds.core.Version("1.0.0"),
            data_dir=str(data_dir),
            module_name="tiny",
        ),
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=shape),
                "label": tfds.features.ClassLabel(names=names),
            }
        ),
    )
    writer = SequentialWriter(info, max_examples_per_shard=4, file_format="array_record")
    writer.initialize_splits(list(splits))
    for split, (images, labels) in splits.items():
        examples = [
            {"image": io.BytesIO(png(image)), "label": int(label)}
            for image, label in zip(images, labels, strict=True)
        ]
        writer.add_examples({split: examples})
    writer.close_all()


class NoTensorFlow:
    """An import hook under which importing TensorFlow fails."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == "tensorflow":
            raise ImportError("TensorFlow was asked for")


def write_module(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """user_arrays.py in a working directory of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "user_arrays.py").write_text(body)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "user_arrays", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))


def check(dataset: datasets.Dataset, train: Any, test: Any, classes: Sequence[str]) -> None:
    """`dataset` holds exactly these arrays, in the types that are promised."""
    for x, y, expected in (
        (dataset.x_train, dataset.y_train, train),
        (dataset.x_test, dataset.y_test, test),
    ):
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(x, expected[0], strict=True)
        np.testing.assert_array_equal(y, expected[1])
    assert dataset.classes == tuple(classes)
    assert len(dataset.digest) == 64


def refused(config: DataConfig, *parts: str) -> str:
    """The message of the InputError: one line that holds all of `parts`."""
    with pytest.raises(InputError) as caught:
        datasets.load(config)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


# Every source.


def test_digits() -> None:
    from sklearn.datasets import load_digits

    dataset = datasets.load(DataConfig())
    digits: Any = load_digits()
    assert dataset.name == "digits"
    assert dataset.x_train.shape == (1797, 8, 8, 1)
    assert dataset.x_test.shape == (0, 8, 8, 1)
    assert (dataset.x_train.min(), dataset.x_train.max()) == (0, 255)
    # Undoing the scaling gives scikit-learn's own values: nothing was lost.
    undone = np.round(dataset.x_train[..., 0].astype(float) * 16 / 255)
    np.testing.assert_array_equal(undone, digits.images)
    np.testing.assert_array_equal(dataset.y_train, digits.target)
    assert dataset.classes == tuple("0123456789")


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


def test_parquet_grey(tmp_path: Path) -> None:
    train, test = arrays(7, (5, 4, 1)), arrays(3, (5, 4, 1), seed=1)
    write_parquet(tmp_path / "mine" / "train.parquet", *train, names=["a", "b", "c"])
    write_parquet(tmp_path / "mine" / "test.parquet", *test, names=["a", "b", "c"])
    write_parquet(tmp_path / "mine" / "latest.parquet", *test)  # no split's name: left alone
    dataset = datasets.load(DataConfig(path=str(tmp_path / "mine")))
    check(dataset, train, test, ["a", "b", "c"])


def test_parquet_sharded_as_on_the_hub(tmp_path: Path) -> None:
    """Shards in data/, columns img and fine_label, validation for test, no class names."""
    (x, y), test = arrays(9, (4, 4, 3)), arrays(3, (4, 4, 3), seed=1)
    columns = ("img", "fine_label")
    for shard, part in enumerate((slice(0, 5), slice(5, 9))):
        file = tmp_path / "data" / f"train-0000{shard}-of-00002.parquet"
        write_parquet(file, x[part], y[part], columns=columns)
    file = tmp_path / "data" / "validation-00000-of-00001.parquet"
    write_parquet(file, *test, columns=columns)
    check(datasets.load(DataConfig(path=str(tmp_path))), (x, y), test, ["0", "1", "2"])
    (tmp_path / "data" / "train-00000-of-00002.parquet").unlink()
    refused(DataConfig(path=str(tmp_path)), "train-00001-of-00002.parquet", "2 shards, 1 are")


def test_parquet_converts_palette_images_to_rgb(tmp_path: Path) -> None:
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[:2] = (255, 0, 0)
    buffer = io.BytesIO()
    Image.fromarray(colour).convert("P").save(buffer, "PNG")
    write_parquet(tmp_path / "train.parquet", [buffer.getvalue()] * 2, [0, 1])
    dataset = datasets.load(DataConfig(path=str(tmp_path)))
    np.testing.assert_array_equal(dataset.x_train, np.stack([colour, colour]))


def test_npz(tmp_path: Path) -> None:
    train, test = arrays(6, (4, 4, 3)), arrays(3, (4, 4, 3), seed=1)
    file = tmp_path / "mine.npz"
    np.savez(file, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
    check(datasets.load(DataConfig(path=str(file))), train, test, ["0", "1", "2"])


def test_npz_without_channels_and_without_test(tmp_path: Path) -> None:
    x, y = arrays(6, (4, 5))
    np.savez_compressed(tmp_path / "mine.npz", x_train=x, y_train=y)
    dataset = datasets.load(DataConfig(path=str(tmp_path / "mine.npz")))
    empty = np.empty((0, 4, 5, 1), np.uint8), np.empty(0)
    check(dataset, (x[..., None], y), empty, ["0", "1", "2"])


@pytest.mark.parametrize(
    "returned",
    [
        "x, y, x[:2], y[:2]",
        "dict(x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])",
        "Dataset('mine', x, y, x[:2], y[:2], ('0', '1', '2'), '')",
    ],
)
def test_user_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: str) -> None:
    body = f"""
import numpy as np
from lira_jax.data.datasets import Dataset
def build():
    x, y = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1), np.arange(3)
    return {returned}
"""
    write_module(tmp_path / "cwd", body, monkeypatch)
    dataset = datasets.load(DataConfig(name="user_arrays:build"))
    x, y = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1), np.arange(3)
    check(dataset, (x, y), (x[:2], y[:2]), ["0", "1", "2"])


@pytest.mark.parametrize("second", ["test", "validation"])
def test_tfds(
    tmp_path: Path,
    second: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    train, test = arrays(6, (4, 4, 3)), arrays(3, (4, 4, 3), seed=1)
    write_tfds(tmp_path / "tfds", {"train": train, second: test}, ["a", "b", "c"])
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoTensorFlow, *sys.meta_path])
    capfd.readouterr()
    check(datasets.load(DataConfig(name="tiny")), train, test, ["a", "b", "c"])
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.skipif(not (REAL / "cifar10-jpeg").exists(), reason="no real CIFAR-10 beside here")
def test_real_cifar10(tmp_path: Path) -> None:
    """The smaller of the two real files, to be quick."""
    (tmp_path / "train.parquet").symlink_to(REAL / "cifar10-jpeg" / "test.parquet")
    dataset = datasets.load(DataConfig(path=str(tmp_path)))
    assert dataset.x_train.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(dataset.y_train), np.full(10, 1000))
    assert dataset.classes[0] == "airplane"
    assert 110 < dataset.x_train.mean() < 130  # CIFAR-10's mean is about 121


@pytest.mark.skipif(not (REAL / "mnist").exists(), reason="no real MNIST beside here")
def test_real_mnist(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").symlink_to(REAL / "mnist" / "test.parquet")
    dataset = datasets.load(DataConfig(path=str(tmp_path)))
    assert dataset.x_train.shape == (10_000, 28, 28, 1)
    assert np.bincount(dataset.y_train).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip


# Limit and digest.


def test_limit_takes_the_first_training_images(tmp_path: Path) -> None:
    train, test = arrays(6, (4, 4, 3)), arrays(3, (4, 4, 3), seed=1)
    write_parquet(tmp_path / "train.parquet", *train)
    write_parquet(tmp_path / "test.parquet", *test)
    full = datasets.load(DataConfig(path=str(tmp_path)))
    dataset = datasets.load(DataConfig(path=str(tmp_path), limit=4))
    check(dataset, (train[0][:4], train[1][:4]), test, ["0", "1", "2"])
    assert isinstance(dataset.x_train, np.memmap)
    assert dataset.digest != full.digest
    assert datasets.load(DataConfig(path=str(tmp_path), limit=6)).digest == full.digest
    refused(DataConfig(path=str(tmp_path), limit=7), "data.limit = 7", "6 training images")
    refused(DataConfig(path=str(tmp_path), limit=1), "data.limit = 1", "one class")


def test_digest_follows_the_content_not_the_source(tmp_path: Path) -> None:
    x, y = arrays(6, (4, 4, 3))
    write_parquet(tmp_path / "train.parquet", x, y)
    np.savez(tmp_path / "same.npz", x_train=x, y_train=y.astype(np.uint8))
    digests = [
        datasets.load(DataConfig(path=str(path))).digest
        for path in (tmp_path, tmp_path / "same.npz")
    ]
    x[0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "other.npz", x_train=x, y_train=y)
    assert digests[0] == digests[1]
    assert datasets.load(DataConfig(path=str(tmp_path / "other.npz"))).digest != digests[0]


# Left-out classes.


def named(tmp_path: Path, names: Sequence[str], test: int = 9) -> str:
    """Twelve training and `test` test images of the classes in turn, in Parquet."""
    for split, count, seed in (("train", 12, 0), ("test", test, 1)):
        images, labels = arrays(count, (4, 4, 3), len(names), seed)
        if count:
            write_parquet(tmp_path / f"{split}.parquet", images, labels, names)
    return str(tmp_path)


@pytest.mark.parametrize("leave_out", ["cat", "1", " cat ,", "1,"])
def test_left_out_classes_are_in_no_split_and_the_others_are_numbered_anew(
    tmp_path: Path, leave_out: str
) -> None:
    path = named(tmp_path, ("bird", "cat", "dog"))
    full = datasets.load(DataConfig(path=path))
    dataset = datasets.load(DataConfig(path=path, leave_out=leave_out))
    splits = []
    for x, y in ((full.x_train, full.y_train), (full.x_test, full.y_test)):
        splits.append((x[y != 1], np.array([{0: 0, 2: 1}[label] for label in y[y != 1]])))
    check(dataset, *splits, ["bird", "dog"])
    np.testing.assert_array_equal(dataset.x_held_out, splits[1][0])
    np.testing.assert_array_equal(dataset.x_left_out, full.x_test[full.y_test == 1], strict=True)
    # Skip and limit count what is left.
    part = datasets.load(DataConfig(path=path, leave_out=leave_out, skip=1, limit=4))
    check(part, (splits[0][0][1:5], splits[0][1][1:5]), splits[1], ["bird", "dog"])


def test_nothing_left_out_changes_nothing(tmp_path: Path) -> None:
    path = named(tmp_path, ("bird", "cat", "dog"))
    full = datasets.load(DataConfig(path=path))
    assert full.x_left_out.shape == (0, 4, 4, 3)
    assert isinstance(full.x_train, np.memmap)
    assert full.digest == datasets.load(DataConfig(path=path, leave_out=" ,")).digest
    # The formula that runs on disk were made with.
    expected = hashlib.sha256(b"3 classes")
    for array in (full.x_train, full.y_train, full.x_test, full.y_test):
        expected.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    assert full.digest == expected.hexdigest()


def test_without_test_images_of_left_out_classes_their_training_images_are_taken(
    tmp_path: Path,
) -> None:
    path = named(tmp_path, ("bird", "cat", "dog"), test=0)
    full = datasets.load(DataConfig(path=path))
    dataset = datasets.load(DataConfig(path=path, leave_out="dog", limit=2))
    np.testing.assert_array_equal(dataset.x_left_out, full.x_train[full.y_train == 2])


def test_a_class_name_that_looks_like_a_number_wins_over_the_number(tmp_path: Path) -> None:
    path = named(tmp_path, ("2", "1", "zero"))
    assert datasets.load(DataConfig(path=path, leave_out="2")).classes == ("1", "zero")
    assert datasets.load(DataConfig(path=path, leave_out="0")).classes == ("1", "zero")


def test_classes_are_left_out_without_decoding_again(tmp_path: Path, decoded: list[str]) -> None:
    path = named(tmp_path, ("bird", "cat", "dog"))
    datasets.load(DataConfig(path=path))
    assert len(decoded) == 21
    datasets.load(DataConfig(path=path, leave_out="cat"))
    assert len(decoded) == 21


def test_canaries_get_labels_of_the_classes_that_stay() -> None:
    dataset = datasets.load(DataConfig(leave_out="3, 7", canaries=200, canary_kind="noise"))
    assert dataset.classes == tuple("01245689")
    assert set(dataset.y_canary) == set(range(8))


@pytest.mark.parametrize(
    ("leave_out", "parts"),
    [
        ("cow", ["cow is no class", "bird, cat, dog, dog"]),
        ("cats", ["cats is no class", "did you mean `cat`?"]),
        ("4", ["4 is no class"]),
        ("-1", ["-1 is no class"]),
        ("dog", ["dog is the name of classes 2, 3", "give their numbers"]),
        ("cat, bird, 1", ["1 is the same class as cat"]),
        ("bird, cat, 2", ["training images of 1 of its classes"]),
        ("0, 1, 2, 3", ["training images of 0 of its classes"]),
    ],
)
def test_bad_classes_to_leave_out(tmp_path: Path, leave_out: str, parts: list[str]) -> None:
    path = named(tmp_path, ("bird", "cat", "dog", "dog"))
    config = DataConfig(path=path, leave_out=leave_out)
    refused(config, f'data.leave_out = "{leave_out}"', *parts)


def test_of_many_classes_some_are_listed(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=arrays(40, (2, 2))[0], y_train=np.arange(40))
    message = refused(DataConfig(path=str(tmp_path / "data.npz"), leave_out="x"), "0…39")
    assert len(message) < 300 + len(str(tmp_path))


# Canaries.


def npz(tmp_path: Path, train: int, test: int) -> str:
    """Images that each differ from all others, as an .npz."""
    x, y = arrays(train + test, (4, 4, 3))
    split = {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}
    np.savez(tmp_path / "data.npz", **split)
    return str(tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("test", "limit", "source"),
    [(8, 0, "test"), (4, 12, "beyond"), (4, 0, "last"), (0, 18, "last")],
)
def test_mislabelled_canaries_are_images_that_are_nowhere_else_with_a_wrong_label(
    tmp_path: Path, test: int, limit: int, source: str
) -> None:
    path = npz(tmp_path, 20, test)
    plain = datasets.load(DataConfig(path=path, limit=limit))
    config = DataConfig(path=path, limit=limit, canaries=5)
    dataset = datasets.load(config, seed=1)
    everything = datasets.load(DataConfig(path=path))
    right = {}
    for x, y in (
        (everything.x_train, everything.y_train),
        (everything.x_test, everything.y_test),
    ):
        right |= {image.tobytes(): label for image, label in zip(x, y, strict=True)}
    wrong = [right[image.tobytes()] for image in dataset.x_canary]
    assert (dataset.y_canary != wrong).all()
    assert set(dataset.y_canary) <= {0, 1, 2}
    canaries, train = ({x.tobytes() for x in y} for y in (dataset.x_canary, dataset.x_train))
    assert len(canaries) == 5
    assert not canaries & train
    held = len(plain.x_train) - 5 * (source == "last")
    np.testing.assert_array_equal(dataset.x_train, plain.x_train[:held])
    np.testing.assert_array_equal(dataset.y_train, plain.y_train[:held])
    pools = {
        "test": everything.x_test,
        "beyond": everything.x_train[limit:],
        "last": plain.x_train[held:],
    }
    assert canaries <= {image.tobytes() for image in pools[source]}


@pytest.mark.parametrize("canaries", [0, 5])
@pytest.mark.parametrize(
    ("test", "limit", "source"),
    [(8, 12, "test"), (0, 12, "beyond"), (4, 0, "test"), (0, 0, "none")],
)
def test_held_out_images_are_neither_candidates_nor_copies_of_canaries(
    tmp_path: Path, test: int, limit: int, source: str, canaries: int
) -> None:
    """The test split or, without one, the training images beyond `limit`, with their labels."""
    path = npz(tmp_path, 20, test)
    everything = datasets.load(DataConfig(path=path))
    dataset = datasets.load(DataConfig(path=path, limit=limit, canaries=canaries), seed=1)
    x, y = {
        "test": (everything.x_test, everything.y_test),
        "beyond": (everything.x_train[12:], everything.y_train[12:]),
        "none": (everything.x_test, everything.y_test),
    }[source]
    used = {image.tobytes() for image in dataset.x_canary}
    stays = [image.tobytes() not in used for image in x]
    np.testing.assert_array_equal(dataset.x_held_out, x[stays])
    np.testing.assert_array_equal(dataset.y_held_out, y[stays])
    assert (dataset.x_held_out.dtype, dataset.y_held_out.dtype) == (np.uint8, np.int32)
    candidates = {image.tobytes() for image in datasets.candidates(dataset, 1)[0]}
    assert not candidates & {image.tobytes() for image in dataset.x_held_out}


def test_where_canaries_take_the_whole_test_split_images_beyond_the_limit_are_held_out(
    tmp_path: Path,
) -> None:
    path = npz(tmp_path, 20, 5)
    dataset = datasets.load(DataConfig(path=path, limit=12, canaries=5))
    np.testing.assert_array_equal(
        dataset.x_held_out, datasets.load(DataConfig(path=path)).x_train[12:]
    )


def test_mislabelled_canaries_get_every_wrong_label_and_noise_every_label(tmp_path: Path) -> None:
    path = npz(tmp_path, 6, 600)
    dataset = datasets.load(DataConfig(path=path, canaries=600))
    right = datasets.load(DataConfig(path=path)).y_test
    counts = np.bincount((dataset.y_canary - right) % 3, minlength=3)
    assert counts[0] == 0
    assert counts.min(initial=600, where=counts > 0) > 240
    noise = datasets.load(DataConfig(path=path, canaries=600, canary_kind="noise"))
    assert np.bincount(noise.y_canary, minlength=3).min() > 150
    assert noise.x_canary.shape == (600, 4, 4, 3)
    assert (noise.x_canary.dtype, noise.y_canary.dtype) == (np.uint8, np.int32)
    assert np.bincount(noise.x_canary.ravel(), minlength=256).min() > 60  # 112.5 expected
    assert len(noise.x_train) == 6


def test_canaries_are_a_function_of_the_seed_and_part_of_the_digest(tmp_path: Path) -> None:
    path = npz(tmp_path, 20, 40)
    plain = datasets.load(DataConfig(path=path))
    assert (plain.x_canary.shape, plain.y_canary.shape) == ((0, 4, 4, 3), (0,))
    digests = {plain.digest, datasets.load(DataConfig(path=path, canary_kind="noise")).digest}
    assert len(digests) == 1
    for kind in ("mislabelled", "noise"):
        config = DataConfig(path=path, canaries=5, canary_kind=kind)
        first, again, other = (datasets.load(config, seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first.x_canary, again.x_canary)
        np.testing.assert_array_equal(first.y_canary, again.y_canary)
        assert first.digest == again.digest
        assert not np.array_equal(first.x_canary, other.x_canary)
        digests |= {first.digest, other.digest}
    assert len(digests) == 5


def test_more_canaries_than_training_images_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path, 6, 2)
    datasets.load(DataConfig(path=path, canaries=4))
    for canaries in (5, 6, 7, 1000):
        refused(DataConfig(path=path, canaries=canaries), f"canaries = {canaries}", "give fewer")


# The cache.


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places of the images decoded so far."""
    places: list[str] = []
    original = datasets.decode_image

    def counted(data: bytes, place: str) -> np.ndarray:
        places.append(place)
        return original(data, place)

    monkeypatch.setattr(datasets, "decode_image", counted)
    return places


def test_cache_is_keyed_by_content(tmp_path: Path, cache: Path, decoded: list[str]) -> None:
    x, y = arrays(6, (4, 4, 3))
    write_parquet(tmp_path / "a" / "train.parquet", x, y, names=["a", "b", "c"])
    first = datasets.load(DataConfig(path=str(tmp_path / "a")))
    again = datasets.load(DataConfig(path=str(tmp_path / "a")))
    assert len(decoded) == 6
    assert again.digest == first.digest
    check(again, (x, y), (first.x_test, first.y_test), ["a", "b", "c"])
    assert isinstance(again.x_train, np.memmap)
    assert not again.x_train.flags.writeable

    # A copy elsewhere shares the entry; an edit in place does not.
    write_parquet(tmp_path / "b" / "train.parquet", x, y, names=["a", "b", "c"])
    datasets.load(DataConfig(path=str(tmp_path / "b")))
    assert len(decoded) == 6
    write_parquet(tmp_path / "a" / "train.parquet", x[::-1], y, names=["a", "b", "c"])
    edited = datasets.load(DataConfig(path=str(tmp_path / "a")))
    assert len(decoded) == 12
    np.testing.assert_array_equal(edited.x_train, x[::-1])
    assert len(list(cache.iterdir())) == 2  # no scratch folder stays behind


def truncate(folder: Path) -> None:
    file = folder / "x_train.npy"
    file.write_bytes(file.read_bytes()[:-1])


def reshape(folder: Path) -> None:
    np.save(folder / "y_train.npy", np.zeros(5, np.int64))


def empty(folder: Path) -> None:
    (folder / "x_test.npy").write_bytes(b"")


def forget(folder: Path) -> None:
    (folder / "about.json").unlink()


def garble(folder: Path) -> None:
    (folder / "about.json").write_text("[1, 2")


@pytest.mark.parametrize("damage", [truncate, reshape, empty, forget, garble])
def test_damaged_cache_is_rebuilt(
    tmp_path: Path,
    cache: Path,
    decoded: list[str],
    damage: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    x, y = arrays(6, (4, 4, 3))
    write_parquet(tmp_path / "train.parquet", x, y)
    datasets.load(DataConfig(path=str(tmp_path)))
    (folder,) = cache.iterdir()
    damage(folder)
    capfd.readouterr()
    for _ in range(2):  # the second time from the repaired entry
        np.testing.assert_array_equal(datasets.load(DataConfig(path=str(tmp_path))).x_train, x)
    assert len(decoded) == 12
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert f"{folder}: damaged cache" in said
    assert list(cache.iterdir()) == [folder]


def test_cache_tolerates_another_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process puts its folder in place while this one decodes."""
    x, y = arrays(6, (4, 4, 3))
    write_parquet(tmp_path / "train.parquet", x, y)
    original = datasets._decode_parquet

    def overtaken(*args: Any) -> Any:
        monkeypatch.setattr(datasets, "_decode_parquet", original)
        other = datasets.load(DataConfig(path=str(tmp_path)))
        np.testing.assert_array_equal(other.x_train, x)
        return original(*args)

    monkeypatch.setattr(datasets, "_decode_parquet", overtaken)
    np.testing.assert_array_equal(datasets.load(DataConfig(path=str(tmp_path))).x_train, x)


def test_goes_on_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    x, y = arrays(6, (4, 4, 3))
    write_parquet(tmp_path / "train.parquet", x, y)
    (tmp_path / "file").write_text("no folder can be made below a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    np.testing.assert_array_equal(datasets.load(DataConfig(path=str(tmp_path))).x_train, x)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "not cached" in said


# Bad input.


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nowhere.npz", "check data.path"),
        ("cifar-10-binary.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
        ("cifar-100-binary.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"),
    ],
)
def test_missing_file(tmp_path: Path, name: str, part: str) -> None:
    refused(DataConfig(path=str(tmp_path / name)), name, "no such file", part)


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


def bad_arrays() -> dict[str, tuple[dict[str, Any], str]]:
    x, y = arrays(6, (4, 4, 3))
    test = {"x_test": x, "y_test": y}
    return {
        "unit floats": ({"x_train": x / 255, "y_train": y}, "multiply by 255"),
        "int images": ({"x_train": x.astype(int), "y_train": y}, "images are int64"),
        "flat images": ({"x_train": x.reshape(6, -1), "y_train": y}, "shape (6, 48)"),
        "objects": ({"x_train": np.array([None] * 6), "y_train": y}, "object"),
        "no pixels": ({"x_train": x[:, :0], "y_train": y}, "no pixels"),
        "empty": ({"x_train": x[:0], "y_train": y[:0]}, "no training images"),
        "count": ({"x_train": x, "y_train": y[:5]}, "6 images but 5 labels"),
        "test count": ({"x_train": x, "y_train": y, "x_test": x, "y_test": y[:5]}, "test has 6"),
        "float labels": ({"x_train": x, "y_train": y * 1.0}, "labels are float64"),
        "bool labels": ({"x_train": x, "y_train": y > 0}, "labels are bool"),
        "one-hot labels": ({"x_train": x, "y_train": np.eye(3, dtype=int)[y]}, "shape (6, 3)"),
        "negative": ({"x_train": x, "y_train": y - 1}, "train label -1 in row 0"),
        "all negative": ({"x_train": x, "y_train": y - 9}, "train label -9 in row 0"),
        "negative test": ({"x_train": x, "y_train": y, "x_test": x, "y_test": -y}, "test label -2"),
        "identifiers": ({"x_train": x, "y_train": y + 2**40}, "number the classes"),
        "one class": ({"x_train": x, "y_train": y * 0 + 2}, "one class"),
        "sizes": ({"x_train": x[:, :3], "y_train": y} | test, "make them one size"),
        "no y_test": ({"x_train": x, "y_train": y, "x_test": x}, "one of x_test and y_test"),
    }


@pytest.mark.parametrize("case", bad_arrays())
def test_bad_arrays_in_npz(tmp_path: Path, case: str) -> None:
    content, part = bad_arrays()[case]
    np.savez(tmp_path / "bad.npz", allow_pickle=True, **content)
    # Pickled objects are refused on reading, before any check.
    part = "not readable as .npz" if case == "objects" else part
    refused(DataConfig(path=str(tmp_path / "bad.npz")), str(tmp_path / "bad.npz"), part)


@pytest.mark.parametrize("case", bad_arrays())
def test_bad_arrays_from_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    content, part = bad_arrays()[case]
    write_module(tmp_path / "cwd", "content = {}\ndef build(): return content", monkeypatch)
    monkeypatch.syspath_prepend(tmp_path / "cwd")
    importlib.import_module("user_arrays").content.update(content)
    refused(DataConfig(name="user_arrays:build"), "user_arrays:build", part)


def test_bad_npz_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    x, y = arrays(6, (4, 4, 3))
    np.savez(file, x_train=x, y_train=y)
    whole = file.read_bytes()
    for content in (whole[:300], b"", b"text", whole[:80] + b"\xff" * 40 + whole[120:]):
        file.write_bytes(content)
        refused(DataConfig(path=str(file)), str(file))
    np.savez(file, images=x, y_train=y)
    refused(DataConfig(path=str(file)), str(file), "holds no x_train;")
    with file.open("wb") as handle:
        np.save(handle, x)
    refused(DataConfig(path=str(file)), str(file), "holds no x_train and no y_train")


def test_bad_parquet_folders(tmp_path: Path) -> None:
    config = DataConfig(path=str(tmp_path))
    refused(config, str(tmp_path), "holds no train*.parquet")
    write_parquet(tmp_path / "plain_text" / "train.parquet", *arrays(6, (4, 4, 3)))
    refused(config, str(tmp_path), "there are Parquet files in plain_text")
    file = tmp_path / "plain_text" / "train.parquet"
    refused(DataConfig(path=str(file)), str(file), "the folder that holds")


def test_bad_parquet_files(tmp_path: Path) -> None:
    config, file = DataConfig(path=str(tmp_path)), tmp_path / "train.parquet"
    x, y = arrays(6, (4, 4, 3))

    write_parquet(file, x, y)
    whole = file.read_bytes()
    for content in (whole[:-9], b"", b"PAR1 and no more", b"\0" * 300 + whole[300:]):
        file.write_bytes(content)
        refused(config, str(tmp_path))
    write_parquet(file, x, y, columns=("picture", "label"))
    refused(config, str(file), "columns picture, label")
    pq.write_table(pa.table({"image": [png(i) for i in x], "label": y}), file)
    refused(config, str(file), "column image is binary")
    write_parquet(file, x, [f"class {label}" for label in y])
    refused(config, str(file), "column label is", "integers")
    write_parquet(file, x, pa.array([0, 1, None, 0, 1, 2]))
    refused(config, f"{file}: row 2", "no label")
    write_parquet(file, [*x[:3], None, *x[4:]], y)
    refused(config, f"{file}: row 3", "no image bytes")
    write_parquet(file, [*x[:5], b"not an image"], y)
    refused(config, f"{file}: row 5", "cannot be decoded")
    write_parquet(file, [*x[:4], png(x[4])[:60], x[5]], y)
    refused(config, f"{file}: row 4", "cannot be decoded")
    write_parquet(file, [*x[:4], x[4][:3], x[5]], y)
    refused(config, f"{file}: row 4", "(3, 4, 3)", "one size")
    write_parquet(file, [*x[:4], x[4][..., :1], x[5]], y)
    refused(config, f"{file}: row 4", "(4, 4, 1)", "one size")
    deep = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep, "PNG")
    write_parquet(file, [deep.getvalue()] * 6, y)
    refused(config, f"{file}: row 0", "8 bits")
    write_parquet(file, x, y, names=["a", "b"])
    refused(config, str(tmp_path), "train label 2 in row 2", "0…1")
    write_parquet(file, x[:0], y[:0])
    refused(config, str(tmp_path), "no training images")


@pytest.mark.parametrize(
    ("body", "name", "part"),
    [
        ("", "user_arrays:build", "no function 'build'"),
        ("build = 3", "user_arrays:build", "no function 'build'"),
        ("", "no_such_module_here:build", "No module named 'no_such_module_here'"),
        ("", "user_arrays:", "no function ''"),
        ("", ":build", "Empty module name"),
        ("import nothing_like_it", "user_arrays:build", "nothing_like_it"),
        ("def build(: pass", "user_arrays:build", "user_arrays.py, line 1"),
        ("def build():\n  raise RuntimeError('two\\nlines')", "user_arrays:build", "two lines"),
        ("def build():\n  return 1 / 0", "user_arrays:build", "user_arrays.py, line 2"),
        ("def build(x): return x", "user_arrays:build", "without arguments"),
        ("def build(): return 7", "user_arrays:build", "returned int"),
        ("def build(): return {}", "user_arrays:build", "returned dict"),
        ("def build(): return [[1], [2, 3]], [0, 1], [], []", "user_arrays:build", "train images"),
        ("def build(): return [[1], [[2], 3]], [0, 1], [], []", "user_arrays:build", "ragged"),
    ],
)
def test_bad_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, name: str, part: str
) -> None:
    write_module(tmp_path / "cwd", body, monkeypatch)
    refused(DataConfig(name=name), f'data.name = "{name}"', part)


@pytest.mark.parametrize("name", ["", "./data", "mine.npz", "two words", "a/b/c"])
def test_not_a_name(name: str) -> None:
    refused(DataConfig(name=name), f'data.name = "{name}"', "data.path")


def test_tfds_not_prepared(tmp_path: Path) -> None:
    refused(
        DataConfig(name="cifar10"),
        'data.name = "cifar10"',
        f"not prepared in {tmp_path / 'tfds'}",
        "pip install tensorflow-cpu",
        'python -c "import tensorflow_datasets as tfds; '
        "tfds.builder('cifar10', file_format='array_record').download_and_prepare()\"",
        "data.path to cifar-10-binary.tar.gz",
    )
    refused(DataConfig(name="cifar100"), "data.path to cifar-100-binary.tar.gz")
    assert "cifar" not in refused(DataConfig(name="svhn_cropped"), "Parquet")


def test_tfds_unknown_name() -> None:
    refused(DataConfig(name="cifar1O"), "not known to TFDS", "did you mean `cifar10`?")
    refused(DataConfig(name="digit"), "did you mean `digits`?")
    assert "did you mean" not in refused(DataConfig(name="qqqqqqqq"), "not known to TFDS")


def test_tfds_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    refused(
        DataConfig(name="cifar10"),
        "pip install tensorflow-datasets",
        "cifar-10-binary.tar.gz",
    )


def test_tfds_prepared_in_another_format(tmp_path: Path) -> None:
    write_tfds(tmp_path / "tfds", {"train": arrays(6, (4, 4, 3))}, ["a", "b", "c"])
    about = tmp_path / "tfds" / "tiny" / "1.0.0" / "dataset_info.json"
    about.write_text(about.read_text().replace("array_record", "tfrecord"))
    refused(DataConfig(name="tiny"), "prepared as tfrecord", str(about.parent), "download_and_prep")


def test_tfds_damaged(tmp_path: Path) -> None:
    write_tfds(tmp_path / "tfds", {"train": arrays(6, (4, 4, 3))}, ["a", "b", "c"])
    folder = tmp_path / "tfds" / "tiny" / "1.0.0"
    (records, *_) = sorted(folder.glob("*train*"))
    whole = records.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\0" * len(whole)):
        records.write_bytes(content)
        refused(DataConfig(name="tiny"), str(folder), "move that folder away")
    records.unlink()
    refused(DataConfig(name="tiny"), str(folder), "move that folder away")
    (folder / "dataset_info.json").write_text("{")
    refused(DataConfig(name="tiny"), str(tmp_path / "tfds"), "TFDS cannot open it")


def test_tfds_without_train(tmp_path: Path) -> None:
    images = arrays(6, (4, 4, 3))
    write_tfds(
        tmp_path / "tfds", {"train": (images[0][:0], images[1][:0]), "test": images}, list("abc")
    )
    refused(DataConfig(name="tiny"), "has splits test but no train")
