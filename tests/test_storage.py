"""Files written whole, arrays that tell when they are damaged."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax import storage
from lira_jax.run import locks
from lira_jax.storage import as_path, read_array, write_array, write_rows, write_text
from tests.conftest import files_of, fresh_epath, refusal
from tests.object_store import ObjectStore


def npy(array, **changes):
    file = io.BytesIO()
    np.save(file, array, **changes)
    return file.getvalue()


# Writing.


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    storage.write_text(tmp_path / "a.txt", "old")

    def half(file):
        file.write(b"ne")
        file.flush()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write_whole(tmp_path / "a.txt", half)
    assert files_of(tmp_path) == {"a.txt": b"old"}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    message = refusal(tmp_path, lambda: storage.write_text(tmp_path / "file" / "a.txt", "new"))
    assert f"{tmp_path}/file/a.txt: cannot be written (" in message


# Reading.


def test_what_is_written_is_read_by_memory_map(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    write_array(tmp_path / "a.npy", array)
    read = read_array(tmp_path / "a.npy", np.float32, (2, None, 4), "")
    assert isinstance(read, np.memmap)
    assert not read.flags.writeable
    np.testing.assert_array_equal(read, array)


good = np.zeros((2, 3), np.float32)
objects = npy(np.array([{}, 1], object))
archive = io.BytesIO()
np.savez(archive, scores=good)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is a text file\n",
        npy(good)[:5],
        npy(good)[:60],
        npy(good)[:-1],
        npy(good).replace(b"(2, 3)", b"(9, 9)"),
        npy(good).replace(b"(2, 3)", b"(-2,3)"),
        npy(good).replace(b"(2, 3)", b"{2, 3}"),
        npy(good).replace(b"'<f4'", b"'<q4'"),
        archive.getvalue(),
        b"PK\x03\x04 no archive",
        objects,
        npy(good.astype(">f4")),
        npy(good.astype(np.float64)),
        npy(good.T.copy()),
        npy(good[0]),
        npy(good[:, :, np.newaxis]),
        npy(np.float32(1)),
    ],
)
def test_a_truncated_or_foreign_array_is_refused(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    message = refusal(tmp_path, lambda: read_array(path, np.float32, (2, 3), "run score.py again"))
    assert message.startswith(f"{path}: ")
    assert message.endswith("delete it and run score.py again")


def test_a_missing_array_and_a_folder_in_its_place_are_refused(tmp_path):
    def read(name):
        return lambda: read_array(tmp_path / name, np.float32, (2, 3), "run score.py again")

    (tmp_path / "folder.npy").mkdir()
    assert "no such file; run score.py again" in refusal(tmp_path, read("a.npy"))
    assert "is a folder, not a file; delete it" in refusal(tmp_path, read("folder.npy"))


def test_the_checksum_is_that_of_sha256sum_and_numpy_loads_the_array(tmp_path):
    write_array(tmp_path / "a.npy", good)
    content = (tmp_path / "a.npy").read_bytes()
    assert content.startswith(npy(good))
    checksum = subprocess.run(
        ["sha256sum"], input=npy(good), capture_output=True, check=True
    ).stdout.split()[0]
    assert content == npy(good) + b"\nsha256 " + checksum + b"\n"
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), good)


def test_rows_written_in_parts_are_the_array(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    parts = (part for part in (array[:2], array[2:2], array[2:3], array[3:].astype(np.float64)))
    write_rows(tmp_path / "parts.npy", np.float32, array.shape, parts)
    write_array(tmp_path / "whole.npy", array)
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@settings(max_examples=300)
@given(st.data())
def test_any_one_damaged_byte_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    write_array(path, good)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert str(path) in refusal(None, lambda: read_array(path, np.float32, (2, 3), ""))


@pytest.mark.parametrize("length", [0, 5, 100, 200, -74, -73, -1])
def test_an_array_cut_anywhere_is_refused(tmp_path, length):
    path = tmp_path / "a.npy"
    write_array(path, good)
    path.write_bytes(path.read_bytes()[:length])
    refusal(tmp_path, lambda: read_array(path, np.float32, (2, 3), ""))
    path.write_bytes(npy(good) + b"x" * 73)
    message = refusal(tmp_path, lambda: read_array(path, np.float32, (2, 3), "run score.py again"))
    assert "damaged: its length or checksum is not what was written; delete it and run" in message


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    """In a process of its own that may write no file over 4 KiB."""
    write_array(tmp_path / "a.npy", good)
    before = files_of(tmp_path)
    code = f"""
import resource, signal
import numpy as np
from pathlib import Path
from lira_jax import storage
from lira_jax.run import locks
from lira_jax.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    storage.write_array(Path({str(tmp_path)!r}) / "a.npy", np.zeros(10_000))
except InputError as error:
    print(error)
"""
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"{tmp_path}/a.npy: cannot be written (File too large); check" in outcome.stdout
    assert files_of(tmp_path) == before


# Object stores.


def test_what_is_written_to_a_store_is_what_would_be_on_a_disk(store, tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    run = as_path("gs://bucket/some/run")
    for place in (run, tmp_path):
        write_array(place / "masks" / "a.npy", array)
        write_text(place / "a.txt", "×")
    assert store == {f"bucket/some/run/{name}": x for name, x in files_of(tmp_path).items()}
    read = read_array(run / "masks" / "a.npy", np.float32, (2, None, 4), "")
    assert isinstance(read, np.memmap)
    np.testing.assert_array_equal(read, array)
    assert (run / "a.txt").read_text() == "×"


def test_a_failed_write_leaves_the_old_object_and_no_other(store, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = as_path("gs://bucket/run")
    write_text(run / "a.txt", "old")

    def half(file):
        file.write(b"ne")
        file.flush()
        raise KeyboardInterrupt

    for name in ("a.txt", "b.txt"):
        with pytest.raises(KeyboardInterrupt):
            storage.write_whole(run / name, half)
    assert store == {"bucket/run/a.txt": b"old"}
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError("https://store/upload?bucket"), "no such bucket"),
        (OSError("Forbidden: bucket/run\nno right to write"), "Forbidden: bucket/run no right to"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_store_that_does_not_take_an_object_is_named(store, monkeypatch, error, said):
    def put_file(*_):
        raise error

    monkeypatch.setattr(ObjectStore, "put_file", put_file)
    message = refusal(None, lambda: write_text(as_path("gs://bucket/run") / "a.txt", "new"))
    assert message.startswith(f"gs://bucket/run/a.txt: cannot be written ({said}")


def test_a_missing_or_damaged_object_is_refused_by_its_own_name(store):
    path = as_path("gs://bucket/run/a.npy")

    def refused(shape=(2, 3)):
        return refusal(None, lambda: read_array(path, np.float32, shape, "run score.py again"))

    assert refused() == f"{path}: no such file; run score.py again"
    write_array(path, good)
    whole = store["bucket/run/a.npy"]
    assert refused((2, 4)).startswith(f"{path}: holds float32 [2, 3] instead of float32 [2, 4]")
    store["bucket/run/a.npy"] = whole[:-80] + bytes([whole[-80] ^ 1]) + whole[-79:]
    assert refused().startswith(f"{path}: damaged: its length or checksum")
    store["bucket/run/a.npy"] = whole[:9]
    assert refused().startswith(f"{path}: damaged")


def test_a_store_that_fails_does_not_pass_for_damage(store, monkeypatch):
    path = as_path("gs://bucket/run/a.npy")
    write_array(path, good)

    def open_file(*_, **__):
        raise RuntimeError("no answer\nfor 60 s")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "_open", open_file)
        for read in (
            lambda: read_array(path, np.float32, (2, 3), ""),
            lambda: storage.read_checked(path, ""),
        ):
            with pytest.raises(OSError, match="no answer for 60 s") as caught:
                read()
            assert caught.value.filename == "gs://bucket/run/a.npy"
    assert storage.read_checked(path, "") == npy(good)
    path.unlink()
    assert "no such file" in refusal(None, lambda: storage.read_checked(path, ""))


def test_objects_and_folders_of_them_are_listed_and_removed(store):
    run = as_path("gs://bucket/run")
    assert storage.names(run) == []
    for name in ("b/1", "b/2", "a", "bc"):
        write_text(run / name, name)
    store["bucket/run/"] = b""  # what a store's web page makes for a folder
    assert storage.names(run) == ["a", "b", "bc"]
    assert storage.names(run / "b") == ["1", "2"]
    assert storage.names(run / "c") == []
    for _ in range(2):
        storage.remove(run / "b")
        storage.remove(run / "a")
        storage.sweep(run)
        assert store == {"bucket/run/": b"", "bucket/run/bc": b"bc"}


def test_a_store_has_no_locks(store):
    path = as_path("gs://bucket/run/.lock-train")
    with locks.lock(path, range(4), "refused"), locks.lock(path, range(4), "refused"):
        assert store == {}


@pytest.mark.parametrize("text", ["s3://bucket/run", "foo://x", "gs://", "gs:///", "://x"])
def test_only_paths_on_a_disk_and_in_google_s_store_are_taken(text):
    message = refusal(None, lambda: as_path(text))
    assert message == f"{text}: give a path on a disk, or gs://BUCKET/FOLDER"
    assert as_path("runs/gs:x") == Path("runs/gs:x")


def test_a_store_that_cannot_be_reached_and_a_missing_package_are_told(store, monkeypatch):
    def exists(*_):
        raise OSError("Cannot connect\nto host")

    monkeypatch.setattr(ObjectStore, "exists", exists)
    message = refusal(None, lambda: as_path("gs://bucket/run"))
    assert message.startswith("gs://bucket/run: cannot be reached (Cannot connect to host); docs/")
    monkeypatch.undo()
    monkeypatch.setenv("EPATH_USE_TF", "false")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with fresh_epath():
        message = refusal(None, lambda: as_path("gs://bucket/run"))
    assert message.startswith("gs://bucket/run: Please install gcsfs")
    assert message.endswith("pip install 'etils[epath-gcs]'")
