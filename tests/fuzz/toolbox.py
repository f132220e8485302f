"""Surfaces that are fuzzed, and the damage that is common to them.

A surface writes an undisturbed input, spoils a copy of it, and has the program read it. What it may
then do follows from the spoiling's verdict: `REFUSE` what is known to be bad; refuse it or give the
`SAME` as undisturbed where damage may be harmless; or, where there is no telling, `ANY` but what
no input may cause: a traceback, a hang, or gigabytes of memory.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

REFUSE, SAME, ANY = "refuse", "same", "any"
# The variable that says where runs are kept to be spoilt, and the file that says they are whole.
MATERIAL, WHOLE = "LIRA_JAX_FUZZ_RUNS", "whole"
Values = Mapping[str, Any]
BOMB = 2_500_000_000  # bytes of zeros


@dataclass(frozen=True)
class Spoilt:
    """What was done to an input, in words, and what the program may do with it."""

    what: str
    verdict: str = SAME


@dataclass(frozen=True)
class Surface:
    """One way into the program.

    Attributes:
        name: for the table, and to repeat an input.
        weight: how many inputs it gets, by comparison.
        make: writes an undisturbed input into an empty folder.
        spoil: disturbs a copy of it.
        read: has the program read it; what it made of it, by name.
    """

    name: str
    weight: float
    make: Callable[[Path], None]
    spoil: Callable[[Random, Path], Spoilt]
    read: Callable[[Path], Values]


def differs(values: Values, expected: Values) -> str:
    """The first name under which two readings differ; empty if none."""
    for name in sorted({*values, *expected}):
        one, other = values.get(name), expected.get(name)
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
            alike = (one.dtype, one.shape) == (other.dtype, other.shape)
            if not alike or one.tobytes() != other.tobytes():
                return name
        elif type(one) is not type(other) or one != other:
            return name
    return ""


def damaged(random: Random, content: bytes) -> tuple[bytes, str]:
    """Other bytes than these."""
    kind = random.choice(("flip", "flip", "byte", "cut", "more", "zeros", "gone", "swap", "twice"))
    size, place = len(content), random.randrange(max(1, len(content)))
    changed = bytearray(content)
    if kind == "flip" and size:
        changed[place] ^= 1 << random.randrange(8)
    elif kind == "byte" and size:
        changed[place] = (changed[place] + random.randrange(1, 256)) % 256
    elif kind == "cut" and size:
        del changed[place:]
    elif kind == "zeros" and size:
        length = random.randint(1, 64)
        changed[place : place + length] = bytes(len(changed[place : place + length]))
    elif kind == "gone" and size:
        del changed[place : place + random.randint(1, 64)]
    elif kind == "swap" and size > 8:
        other = random.randrange(size - 4)
        at = min(place, size - 4)
        changed[at : at + 4], changed[other : other + 4] = (
            changed[other : other + 4], changed[at : at + 4],
        )  # fmt: skip
    elif kind == "twice" and size:
        changed += changed[place:]
    else:
        kind, changed = "more", changed + random.randbytes(random.randint(1, 64))
    return bytes(changed), f"{kind} at {place} of {size}"


def damage(random: Random, path: Path) -> str:
    content, what = damaged(random, path.read_bytes())
    path.write_bytes(content)
    return f"{path.name}: {what}"


def special(random: Random, path: Path) -> str:
    """Put what is no regular file in the place of a file or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    kind = random.choice(
        ("pipe", "zero", "random", "null", "socket", "dangling", "loop", "folder", "missing")
    )
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("zero", "random", "null"):
        path.symlink_to(f"/dev/{'urandom' if kind == 'random' else kind}")
    elif kind == "socket":
        _socket(path)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    return f"{path.name}: {kind}"


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:  # its name may be no longer than some 100 bytes
        before = os.open(".", os.O_RDONLY)
        try:
            os.chdir(path.parent)
            end.bind(path.name)
        finally:
            os.fchdir(before)
            os.close(before)


# What the header of an .npy file may say, none of which fits the bytes behind it.
DESCRIPTIONS = (
    "'<f4'", "'<f8'", "'>f8'", "'<f2'", "'<c16'", "'|O'", "'|S5'", "'<U9'", "'<i8'", "'<u8'",
    "'|b1'", "'<M8[s]'", "'<m8'", "'|V7'", "[('a', '<f4'), ('b', '<i2')]", "'<f4294967296'", "7",
    "None", "''", "'x'", "[('a',)]", "('<f4', (2, 2))", "'<f16'", "'<U1000000000'", "b'<f4'",
    "{'names': []}", "__import__('os')", "'<f4' * 10**9", "[" * 60 + "]" * 60,
)  # fmt: skip
SHAPES = (
    "()", "(0,)", "(-1,)", "(3, -1)", "(2**70,)", "(10**12,)", "(4, 10**9)", "(10**5, 10**5, 9)",
    "(1.5,)", "('a',)", "None", "3", "[3]", "(True,)", "(3, 4)", "(1,) * 70", "(0, 10**18)",
    "(4611686018427387904, 4)",
)  # fmt: skip


def npy_header(random: Random, array: np.ndarray) -> tuple[bytes, str]:
    """An .npy file whose header tells of another array than the bytes that follow."""
    descr = random.choice(DESCRIPTIONS) if random.random() < 0.6 else repr(array.dtype.str)
    shape = random.choice(SHAPES) if random.random() < 0.6 else repr(array.shape)
    order = random.choice(("False", "False", "True", "7", "None"))
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    kind = random.randrange(8)
    if kind == 0:
        text = text[: random.randrange(len(text))]
    elif kind == 1:
        text = "(" * random.choice((200, 3000)) + text
    elif kind == 2:
        text = random.choice(("{}", "[]", "9" * 5000, "'\\x00", "{'descr'}", "\x00" * 9, "é" * 9))
    version = random.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    header = text.encode() + b"\n"
    wide = 2 if version == b"\x01\x00" else 4
    length = random.choice((len(header), len(header), len(header), 2**16 - 1, 0))
    start = b"\x93NUMPY" + version + length.to_bytes(wide, "little")
    return start + header + array.tobytes(), f"header v{version[0]} {text[:60]!r} length {length}"


def npy(array: np.ndarray, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **settings)
    return buffer.getvalue()


def write_zip(path: Path, members: Mapping[str, bytes], compression: int = 0) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)


def zip_of(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {f"{name}.npy": npy(array) for name, array in arrays.items()}


@cache
def _deflated_zeros() -> tuple[bytes, int]:
    """Raw deflate of a .npy header for BOMB bytes and those, all 0; and their CRC-32."""
    header = npy(np.zeros(0, np.float32)).replace(b"(0,), }" + b" " * 8, b"(625000000,), }")
    zeros, packer = bytes(10**7), zlib.compressobj(9, wbits=-15)
    first = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = zlib.crc32(header)
    for _ in range(BOMB // len(zeros)):
        crc = zlib.crc32(zeros, crc)
    return first + BOMB // len(zeros) * block + packer.flush(), crc


def write_bomb(path: Path, name: str) -> None:
    """An .npz of 2.5 MB with one array of BOMB zeros."""
    packed, crc = _deflated_zeros()
    size, file = BOMB + 128, f"{name}.npy".encode()
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(packed), size, len(file), 0)
    local = b"PK\x03\x04" + common + file + packed
    central = b"PK\x01\x02\x14\x00" + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + file
    ends = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    path.write_bytes(local + central + b"PK\x05\x06" + ends)


def spoil_zip(
    random: Random, path: Path, arrays: Mapping[str, np.ndarray], needed: Sequence[str]
) -> Spoilt:
    """An .npz whose zip or whose members' headers are damaged, or that claims too much."""
    kind, members = random.randrange(8), zip_of(arrays)
    name = random.choice(list(members))
    if kind < 3:
        return Spoilt(damage(random, path))
    if kind == 3:
        return Spoilt(special(random, path), REFUSE)
    if kind == 4:
        needed_name = random.choice(needed)
        write_bomb(path, needed_name)
        return Spoilt(f"{needed_name}: a bomb", REFUSE)
    if kind == 5:
        del members[name]
        write_zip(path, members)
        rule = REFUSE if name.removesuffix(".npy") in needed else ANY
        return Spoilt(f"without {name}", rule)
    if kind == 6:
        members[name], what = npy_header(random, arrays[name.removesuffix(".npy")])
        write_zip(path, members, random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
        return Spoilt(f"{name}: {what}")
    compression = random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    write_zip(path, members, compression)
    return Spoilt(f"compression {compression}, {damage(random, path)}")
