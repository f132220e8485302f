"""What a name or a path stands for; every bad source gets a single line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_jax.config import DataConfig
from lira_jax.data import datasets
from tests.data.synthetic import arrays, check, refused


def write_module(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """user_arrays.py in a working directory of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "user_arrays.py").write_text(body)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "user_arrays", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))


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


def bad_arrays() -> dict[str, tuple[dict[str, Any], str]]:
    x, y = arrays(6, (4, 4, 3))
    test = {"x_test": x, "y_test": y}
    return {
        "unit floats": ({"x_train": x / 255, "y_train": y}, "multiply by 255"),
        "dates": ({"x_train": x, "y_train": y.astype("m8[s]")}, "labels are timedelta64"),
        "unsigned": ({"x_train": x, "y_train": y.astype(np.uint64) + 2**63}, "beyond 32 bits"),
        "complex": ({"x_train": x, "y_train": y * 1j}, "labels are complex128"),
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
        "far identifiers": ({"x_train": x, "y_train": y + 2**20}, "number the classes"),
        "one class": ({"x_train": x, "y_train": y * 0 + 2}, "one class"),
        "sizes": ({"x_train": x[:, :3], "y_train": y} | test, "make them one size"),
        "no y_test": ({"x_train": x, "y_train": y, "x_test": x}, "one of x_test and y_test"),
    }


@pytest.mark.parametrize("case", bad_arrays())
def test_bad_arrays_in_npz(tmp_path: Path, case: str) -> None:
    content, part = bad_arrays()[case]
    np.savez(tmp_path / "bad.npz", allow_pickle=True, **content)
    # Pickled objects are refused on reading, before any check.
    part = "`x_train` holds Python objects" if case == "objects" else part
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
    refused(DataConfig(path=str(file)), str(file), "one bare array")


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
