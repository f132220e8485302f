"""What is foreign is refused in one line, before it costs memory or time."""

import os

import pytest

from lira_jax import foreign
from lira_jax.errors import InputError


def test_whatever_a_library_raises_becomes_one_line():
    class Strange(Exception):
        pass

    words = r"^a\.npz: not readable \(two lines\); save it again$"
    with pytest.raises(InputError, match=words), foreign.reading("a.npz", "save it again"):
        raise Strange("two\nlines")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_the_end_of_the_program_passes_through(kind):
    with pytest.raises(kind), foreign.reading("a.npz", "save it again"):
        raise kind


def test_a_refusal_within_keeps_its_words():
    with pytest.raises(InputError, match=r"^of its own$"), foreign.reading("a.npz", "again"):
        raise InputError("of its own")


def test_only_regular_files_pass(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    foreign.check_regular(tmp_path / "file")
    foreign.check_regular(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a pipe"), ("link", "a device"), ("", "a folder")):
        with pytest.raises(InputError, match=f"is {kind}, not a file; give a file$"):
            foreign.check_regular(tmp_path / name)


def test_a_bomb_is_refused_and_a_large_file_is_not(monkeypatch):
    monkeypatch.setattr(foreign, "memory", lambda: 2**40)
    foreign.check_size("a.npz", 2**33, 2**30, "save it again")
    foreign.check_size("a.npz", 2**20, 100, "save it again")  # small enough to be let in
    with pytest.raises(InputError, match=r"14 MB that claim to be 14\.0 GB; save it again$"):
        foreign.check_size("a.npz", 14 * 10**9, 14 * 10**6, "save it again")
    with pytest.raises(InputError, match=r"this machine has 1,099\.5 GB of memory; save it again$"):
        foreign.check_size("a.npz", 2**41, 2**40, "save it again")
