"""`.npz` and `.npy` files from elsewhere: read as they were written, or refused in one line."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lira_jax import foreign
from lira_jax.array_files import map_npy, read_npz
from lira_jax.errors import InputError
from tests.conftest import refusal

ADVICE = "save it again"
ARRAYS = {
    "a": np.arange(60, dtype=np.float32).reshape(3, 4, 5), "b": np.arange(40) % 3 == 0,
    "block": np.array(2),
}  # fmt: skip
bounded = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


def header(text: str) -> bytes:
    """The beginning of an .npy file of which the header says this."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


def zipped(path: Path, kind: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def same(arrays: dict[str, np.ndarray]) -> bool:
    return arrays.keys() == ARRAYS.keys() and all(
        (array.dtype, array.tobytes()) == (ARRAYS[name].dtype, ARRAYS[name].tobytes())
        for name, array in arrays.items()
    )


@pytest.mark.parametrize(
    "kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_what_was_saved_is_read_and_other_arrays_are_passed_over(tmp_path, kind):
    members = {name: npy(array) for name, array in ARRAYS.items()}
    path = zipped(tmp_path / "a.npz", kind, other=b"no array", **members)
    assert same(read_npz(path, [*ARRAYS, "missing"], ADVICE))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    whole = path.read_bytes()

    @bounded
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    def holds(place, flip):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        with suppress(InputError):
            assert same(read_npz(path, ARRAYS, ADVICE))

    holds()


def test_every_way_of_laying_out_an_array_gives_the_same_numbers(tmp_path):
    array = ARRAYS["a"]
    for other in (np.asfortranarray(array), array.astype(">f4"), array[::-1, ::-1][::-1, ::-1]):
        (tmp_path / "a.npy").write_bytes(npy(other))
        np.testing.assert_array_equal(map_npy(tmp_path / "a.npy", ADVICE), array)
        path = zipped(tmp_path / "a.npz", a=npy(other))
        read = read_npz(path, ["a"], ADVICE)["a"]
        np.testing.assert_array_equal(read, array, strict=True)
        assert read.flags.c_contiguous


FOREIGN = {
    "huge shape": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"),
    "a shape beyond all numbers": header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 900 + ",)}"
    ),
    "negative": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}") + b"\0" * 16,
    "true": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,)}"),
    "a hundred axes": npy(np.zeros(1)).replace(b"(1,)", b"(" + b"1," * 100 + b")"),
    "no bytes each": header("{'descr': '|V0', 'fortran_order': False, 'shape': (10,)}"),
    "an open bracket": header("{'descr': '<f4', 'shape': ((((((((("),
    "deep brackets": header("(" * 5000),
    "long header": header(" " * 20000),
    "no type": header("{'descr': 'x9', 'fortran_order': False, 'shape': ()}"),
    "objects": npy(np.array([None])),
    "records": npy(np.zeros(3, [("x", "f4"), ("y", "i4")])),
    "pairs": header("{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (1,)}") + b"\0" * 8,
    "short": npy(ARRAYS["a"])[:-4],
    "long": npy(ARRAYS["a"]) + b"\0" * 4,
    "version": b"\x93NUMPY\x09\x00" + b"\0" * 200,
    "text": b"not an array",
    "nothing": b"",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_headers_that_are_no_honest_claim_are_refused(tmp_path, case):
    path = zipped(tmp_path / "a.npz", a=FOREIGN[case])
    message = refusal(tmp_path, lambda: read_npz(path, ["a"], ADVICE))
    assert message.startswith(f"{path}: `a` ")
    (tmp_path / "a.npy").write_bytes(FOREIGN[case])
    message = refusal(tmp_path, lambda: map_npy(tmp_path / "a.npy", ADVICE))
    assert message.startswith(f"{tmp_path / 'a.npy'}")


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    path = zipped(tmp_path / "a.npz", a=npy(ARRAYS["a"]))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.npy", npy(ARRAYS["b"]))
    assert "holds `a` twice" in refusal(tmp_path, lambda: read_npz(path, ["a"], ADVICE))


def test_bombs_are_refused_by_what_they_declare(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "LARGE", 2**16)
    path = zipped(tmp_path / "a.npz", a=npy(np.zeros(10**6)))
    message = refusal(tmp_path, lambda: read_npz(path, ["a"], ADVICE))
    assert "that claim to be 8 MB" in message
    # Of memory no more than there is.
    path = zipped(tmp_path / "a.npz", zipfile.ZIP_STORED, a=npy(np.zeros(10**6)))
    monkeypatch.setattr(foreign, "memory", lambda: 10**6)
    message = refusal(tmp_path, lambda: read_npz(path, ["a"], ADVICE))
    assert "this machine has 1 MB of memory" in message


def test_a_member_gives_no_more_than_it_declares(tmp_path):
    """The size in the directory is what counts, whatever the stream would give."""
    path = zipped(tmp_path / "a.npz", a=npy(np.zeros(10**5)))
    content = path.read_bytes()
    size = struct.pack("<I", len(npy(np.zeros(10**5))))
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, struct.pack("<I", 200)))
    assert "truncated or damaged" in refusal(tmp_path, lambda: read_npz(path, ["a"], ADVICE))


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        with pytest.raises(InputError, match="not a file; save it again"):
            read_npz(tmp_path / name, ["a"], ADVICE)
        with pytest.raises(InputError, match="not a file; save it again"):
            map_npy(tmp_path / name, ADVICE)
