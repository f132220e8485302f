"""TFDS data prepared on this disk are read without TensorFlow; bad ones get a single line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lira_jax.config import DataConfig
from lira_jax.data import datasets
from tests.data.synthetic import arrays, check, png, refused


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
    refused(DataConfig(name="tiny"), str(folder), "dataset_info.json: not readable")
    (folder / "dataset_info.json").write_text('{"version": "?"}')
    refused(DataConfig(name="tiny"), str(tmp_path / "tfds"), "TFDS cannot open it")


def test_tfds_without_train(tmp_path: Path) -> None:
    images = arrays(6, (4, 4, 3))
    write_tfds(
        tmp_path / "tfds", {"train": (images[0][:0], images[1][:0]), "test": images}, list("abc")
    )
    refused(DataConfig(name="tiny"), "has splits test but no train")


MODULE = "code_of_strangers"
CLASS = f"{MODULE}.Feature"


def hidden_in_json(features: dict[str, Any]) -> dict[str, Any]:
    """As JSON within the JSON, which TFDS reads as a type of features of older versions."""
    inner = {"feature": {"type": CLASS, "content": {}}, "length": None}
    name = "tensorflow_datasets.core.features.sequence_feature.Sequence"
    part = {"pythonClassName": name, "jsonFeature": {"json": json.dumps(inner)}}
    return {**features, "more": part}


def in_label(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda features: {**features, "label": {**features["label"], **changes}}


@pytest.mark.parametrize(
    "change",
    [
        in_label(pythonClassName=CLASS),
        lambda features: {**features, "more": {"python_class_name": CLASS, "text": {}}},
        lambda features: {**features, "more": {"type": CLASS, "content": {}}},
        hidden_in_json,
        lambda features: {**features, "../more": features["label"]},
    ],
)
@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_tfds_imports_nothing_that_a_folder_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, file: str
) -> None:
    (tmp_path / f"{MODULE}.py").write_text("raise SystemExit('ran code that a data set names')")
    monkeypatch.syspath_prepend(tmp_path)
    write_tfds(tmp_path / "tfds", {"train": arrays(6, (4, 4, 3))}, ["a", "b", "c"])
    folder = tmp_path / "tfds" / "tiny" / "1.0.0"
    about = json.loads((folder / "features.json").read_text())
    about["featuresDict"]["features"] = change(about["featuresDict"]["features"])
    if file == "dataset_info.json":
        about = {**json.loads((folder / file).read_text()), "features": about}
    (folder / file).write_text(json.dumps(about))
    refused(DataConfig(name="tiny"), f"{folder / file}: ", "no class of TFDS itself")
    assert MODULE not in sys.modules


def test_tfds_the_oldest_form_is_refused_as_a_whole(tmp_path: Path) -> None:
    write_tfds(tmp_path / "tfds", {"train": arrays(6, (4, 4, 3))}, ["a", "b", "c"])
    file = tmp_path / "tfds" / "tiny" / "1.0.0" / "features.json"
    file.write_text(json.dumps({"type": CLASS, "content": {}}))
    refused(DataConfig(name="tiny"), f"{file}: type is '{CLASS}'")
    file.write_text("[" * 100_000)
    refused(DataConfig(name="tiny"), f"{file}: not readable")


@pytest.mark.parametrize("template", ["/dev/zero", "../../{DATASET}", "/etc/{SPLIT}"])
def test_tfds_shards_lie_in_the_folder(tmp_path: Path, template: str) -> None:
    write_tfds(tmp_path / "tfds", {"train": arrays(6, (4, 4, 3))}, ["a", "b", "c"])
    folder = tmp_path / "tfds" / "tiny" / "1.0.0"
    about = json.loads((folder / "dataset_info.json").read_text())
    about["splits"][0]["filepathTemplate"] = template
    (folder / "dataset_info.json").write_text(json.dumps(about))
    refused(DataConfig(name="tiny"), "data.name", str(tmp_path / "tfds"))
