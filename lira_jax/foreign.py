"""Bytes from elsewhere: what may be opened, how much they may claim, and how they are refused.

Only regular files are opened: a device or a pipe would give bytes for ever, or none. What a file
declares is held against its own size and the memory of this machine before anything is allocated.
And whatever a library raises on foreign bytes becomes one line, so that no list of exceptions can
have a gap; what our own code raises stays a traceback, so only calls of libraries belong inside
`reading`. No JAX.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lira_jax.errors import InputError, one_line

# What is declared may be this many times the bytes that declare it before it counts as a bomb, once
# it is large: deflate reaches 1,032, and real arrays, masks too, stay well below 100.
RATIO, LARGE = 100, 2**28
_OF_THE_MACHINE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE)
# A text file that describes data or results is never as large as this.
_LONGEST_TEXT = 2**28


@contextmanager
def reading(where: Path | str, advice: str, what: str = "not readable") -> Iterator[None]:
    """Turn whatever a library raises on foreign bytes into one line.

    Args:
        where: the file, or a place in it.
        advice: what the user should do.
        what: is wrong, if anything is.

    Raises:
        InputError: in place of any exception but InputError itself.
        MemoryError, OSError: the machine lacks something or its disk fails, whatever the bytes are.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        raise InputError(f"{where}: {what} ({one_line(error)}); {advice}") from error


def check_regular(path: Path, advice: str = "give a file") -> None:
    """Refuse to open what is there and is no regular file, such as a device, a pipe or a folder.

    What is missing is left to whoever opens it, who knows what to say.

    Raises:
        InputError: it is none.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
        }  # fmt: skip
        kind = kinds.get(stat.S_IFMT(mode), "something else")
        raise InputError(f"{path}: is {kind}, not a file; {advice}")


def read_json(path: Path, advice: str) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: no regular file, one that cannot be read or is too long, or no JSON.
    """
    check_regular(path, advice)
    with reading(path, advice):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if size > _LONGEST_TEXT:
                raise ValueError("too long")
            text = file.read(size)
        return json.loads(text)


def check_size(where: Path | str, declared: int, given: int, advice: str) -> None:
    """Refuse what a file declares before it is allocated, if it can be no honest claim.

    Args:
        where: the file, or a place in it.
        declared: bytes in memory.
        given: bytes of the file, or of the part of it, that declare them.
        advice: what the user should do.

    Raises:
        InputError: more than this machine's memory, or a bomb: more than LARGE and more than RATIO
            times what is given.
    """
    if declared > LARGE and declared > RATIO * given:
        raise InputError(
            f"{where}: {_in_words(given)} that claim to be {_in_words(declared)}; {advice}"
        )
    check_memory(f"{where}: holds", declared, advice)


def check_memory(what: str, needed: int, advice: str) -> None:
    """Refuse work that needs more memory than this machine has.

    Args:
        what: needs it, as the beginning of a message such as "data.canaries = 9: need".
        needed: bytes.
        advice: what the user should do.

    Raises:
        InputError: it needs more.
    """
    if needed > memory():
        raise InputError(
            f"{what} {_in_words(needed)}, and this machine has {_in_words(memory())} of memory; "
            f"{advice}"
        )


def memory() -> int:
    """Bytes of memory that this process may have."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text()
        except OSError:
            continue
        if text.strip().isdecimal():
            most = min(most, int(text))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return most if limit == resource.RLIM_INFINITY else min(most, limit)


def _in_words(size: float) -> str:
    size = min(size, 10**30)  # a header may claim more than a float can hold
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
