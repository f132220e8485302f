"""Files that are whole or absent, and arrays that tell when they are damaged and whose they are.

Every file is written beside its place and moved there, so that a kill at any moment leaves the old
file or the new one. An array ends in what it says about itself, a line of JSON such as the run that
it belongs to, and in a checksum of all that comes before; `numpy.load` does not mind. A folder may
be in Google's object store, `gs://bucket/…`, where an object appears whole, once it is uploaded. No
JAX.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from lira_jax import foreign
from lira_jax.errors import InputError

_MARK = b"\nsha256 "
_TRAILER = len(_MARK) + 64 + 1
# What may lie between the content and the checksum, and at most so long.
_ABOUT = re.compile(rb"\n(\{.*\})", re.DOTALL)
_LONGEST = 2**16
BESIDE = ".unfinished-"
_UNFINISHED = re.compile(rf"{re.escape(BESIDE)}[0-9a-f]{{12}}-")
_COPY = 2**22
held: set[Path] = set()  # the locks of this process


def as_path(text: str | Path) -> Path:
    """A path from the command line: a local one, or `gs://bucket/…` as an `etils.epath` path.

    Raises:
        InputError: another kind of store, a missing package, or a store that does not answer.
    """
    scheme, separator, rest = str(text).partition("://")
    if not separator:
        return Path(text)
    if scheme != "gs" or not rest.strip("/"):
        raise InputError(f"{text}: give a path on a disk, or gs://BUCKET/FOLDER")
    # Not through TensorFlow where that is installed: one way to reach the store.
    os.environ["EPATH_USE_TF"] = "false"
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs, it raises too
    try:
        import fsspec
        from etils import epath

        # Other processes write there too: ask the store each time.
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
        path = epath.Path(text)
        path.exists()
    except ImportError as error:
        raise InputError(f"{text}: {error}; pip install 'etils[epath-gcs]'") from None
    # Stores fail in ways of their own: no answer, no credentials, no right to read.
    except Exception as error:
        raise InputError(
            f"{text}: cannot be reached ({_reason(error)}); docs/cluster.md says what it needs"
        ) from None
    return cast(Path, path)


def is_remote(path: Path) -> bool:
    """Whether a path lies in an object store: no folders, locks, memory maps or renaming."""
    return not isinstance(path, Path)


def _store(path: Path) -> tuple[Any, str]:
    """The file system of an object, and its name there."""
    import fsspec

    return fsspec.core.url_to_fs(os.fspath(path))


def _reason(error: Exception) -> str:
    """An object store's error, short enough for a message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def names(folder: Path) -> list[str]:
    """The names of what a folder holds, in order; none if there is no such folder."""
    try:
        entries = sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    # A store's web page makes an empty object for a folder, which is listed within it.
    return [name for name in entries if name != folder.name] if is_remote(folder) else entries


def check_folder(path: Path, remedy: str) -> None:
    """Refuse what is there in place of a folder, such as a file or a link to nothing.

    Raises:
        InputError: it is no folder; do `remedy`.
    """
    if not is_remote(path) and os.path.lexists(path) and not path.is_dir():
        raise InputError(f"{path}: is not a folder; {remedy}")


def refuse_deleted() -> None:
    """Refuse to go on where a folder at work has been deleted or moved.

    Raises:
        InputError: a lock of this process is gone.
    """
    for path in sorted(held):
        if not path.exists():
            raise InputError(
                f"{path.parent}: is gone: deleted or moved while this command was at work on it; "
                "put it back to go on, or begin anew"
            )


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file whole or not at all.

    Args:
        path: where it goes; the folder is made if missing.
        write: called with a binary file to write to and read from.

    Raises:
        InputError: the folder cannot be made, or the file not written.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="lira_jax_") as folder:
            local = Path(folder) / path.name
            write_whole(local, write)
            store, name = _store(path)
            try:
                store.put_file(str(local), name)
            except FileNotFoundError:
                raise cannot_write(path, "no such bucket") from None
            except Exception as error:
                raise cannot_write(path, _reason(error)) from None
        return
    refuse_deleted()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside, file = _open_beside(path)
        try:
            with file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error)) from None


def _open_beside(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside a path, locked for as long as it is open, so that `sweep` spares it."""
    while True:
        beside = path.with_name(f"{BESIDE}{secrets.token_hex(6)}-{path.name}")
        file = beside.open("x+b")
        if not _lock(file) or os.fstat(file.fileno()).st_nlink:
            return beside, file
        file.close()  # swept between the two calls


def _lock(file: BinaryIO) -> bool:
    """Lock a whole file; False where another holds it or there are no locks."""
    try:
        import fcntl  # not on Windows

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def cannot_write(path: Path, reason: str) -> InputError:
    """The refusal of a disk that is full, or a place that cannot be written."""
    return InputError(
        f"{path}: cannot be written ({reason}); check the path and the disk, "
        "then run the same command again"
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def sweep(folder: Path, *, below: bool = True) -> None:
    """Remove what killed processes left half written in a folder, and below: what none locks."""
    if is_remote(folder):
        return
    for where, folders, files in os.walk(folder):
        for path in [Path(where) / name for name in files if _UNFINISHED.match(name)]:
            if path.is_file() and not path.is_symlink():
                with suppress(OSError), path.open("rb") as file:
                    if _lock(file):
                        path.unlink(missing_ok=True)
        if not below:
            folders.clear()


def write_checked(
    path: Path, write: Callable[[BinaryIO], Any], about: Mapping[str, Any] | None = None
) -> None:
    """Write a file whole or not at all, and after what `write` writes what it says about itself,
    which is read only then, and a checksum of both."""

    def write_both(file: BinaryIO) -> None:
        write(file)
        file.seek(0, os.SEEK_END)
        if about:
            file.write(b"\n" + json.dumps(about, sort_keys=True).encode())
        file.seek(0)
        digest = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(_MARK + digest.encode() + b"\n")

    write_whole(path, write_both)


def read_checked(path: Path, remedy: str, about: Mapping[str, Any] | None = None) -> bytes:
    """What `write` wrote for `write_checked`.

    Args:
        about: what the file must say about itself, as far as it says anything.

    Raises:
        InputError: missing, truncated or changed, or another file under this name.
        OSError: a disk or an object store that does not give it.
    """
    foreign.check_regular(path, remedy)
    try:
        with _reading(path, remedy) if is_remote(path) else nullcontext():
            content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    trailer = _MARK + hashlib.sha256(content[:-_TRAILER]).hexdigest().encode() + b"\n"
    if content[-_TRAILER:] != trailer:
        raise InputError(
            f"{path}: damaged: its length or checksum is not what was written; {remedy}"
        )
    content = content[:-_TRAILER]
    says = _says_at_end(content)
    refuse_other(path, says[1], about or {}, remedy)
    return content[: says[0]]


def _says_at_end(content: bytes) -> tuple[int, dict[str, Any] | None]:
    """Where the content ends, and what follows it about itself."""
    start = content.rfind(b"\n{", max(0, len(content) - _LONGEST))
    says = _parsed(content[start:]) if start >= 0 else None
    return (len(content), None) if says is None else (start, says)


def says_of(path: Path) -> dict[str, Any] | None:
    """What any file of `write_checked` says about itself, whose content is not read.

    Raises:
        InputError: it is no file.
        OSError: it is missing or not given.
    """
    if not is_remote(path):
        foreign.check_regular(path)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST - _TRAILER))
        return _says_at_end(file.read()[:-_TRAILER])[1]


def _parsed(tail: bytes) -> dict[str, Any] | None:
    match = _ABOUT.fullmatch(tail)
    try:
        table = json.loads(match[1]) if match else None
    except (ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def refuse_other(
    path: Path, says: Mapping[str, Any] | None, about: Mapping[str, Any], remedy: str
) -> None:
    """Refuse a file that says about itself that it is another.

    Args:
        says: what it says; None for a file of earlier versions, which says nothing.
        about: what it should say.

    Raises:
        InputError: something of it differs; do `remedy`.
    """
    for key, expected in json.loads(json.dumps(about)).items() if says is not None else ():
        there = says.get(key) if says is not None else None
        if there != expected:
            reason, wrong = f"its {key} are {there}, not {expected}: it was renamed", "it"
            if key == "run":
                reason = "belongs to another run than the config.toml of this one, or that does"
            elif key == "settings":
                reason, wrong = f"made with {there}, and the record beside tells {expected}", "both"
            raise InputError(
                f"{path}: {reason}; put the right one back, or delete {wrong} and {remedy}"
            )


def write_array(path: Path, array: np.ndarray, about: Mapping[str, Any] | None = None) -> None:
    """Write an array as .npy with its checksum, whole or not at all."""
    write_rows(path, array.dtype, array.shape, [array], about)


def write_rows(
    path: Path,
    dtype: Any,
    shape: Sequence[int],
    parts: Iterable[np.ndarray],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write an array that need not fit into memory, given in parts along its first axis."""

    def write(file: BinaryIO) -> None:
        description = np.lib.format.dtype_to_descr(np.dtype(dtype))
        header = {"descr": description, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        rows = 0
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).data)
            rows += len(part)
        assert rows == shape[0], (rows, shape)

    write_checked(path, write, about)


def read_array(
    path: Path,
    dtype: Any,
    shape: Sequence[int | None],
    remedy: str,
    about: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Memory-map an array, as `open_array` does."""
    return open_array(path, dtype, shape, remedy, about)[0]


def open_array(
    path: Path,
    dtype: Any,
    shape: Sequence[int | None],
    remedy: str,
    about: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Memory-map an array after checking that it is what was written, and what belongs there.

    Args:
        path: an .npy file of `write_array` or `write_rows`.
        dtype: expected element type.
        shape: expected shape; None accepts any length.
        remedy: what the user should do, for the message.
        about: what the file must say about itself, as far as it says anything: files of earlier
            versions do not.

    Returns:
        The array, and what its file says about itself.

    Raises:
        InputError: missing, truncated, changed or foreign file, another dtype or shape, or another
            file under this name.
        OSError: an object store that does not give it.
    """
    if is_remote(path):
        return _read_remote(path, dtype, shape, remedy, about)
    foreign.check_regular(path, f"delete it and {remedy}")
    try:
        whole = _is_as_written(path)  # before the header, of which any part may be damaged
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    if not whole:
        raise InputError(
            f"{path}: damaged: its length or checksum is not what was written; "
            f"delete it and {remedy}"
        )
    array, says = _mapped(path, remedy)
    refuse_other(path, says, about or {}, remedy)
    expected = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    fits = array.ndim == len(shape) and all(
        size in (None, actual) for size, actual in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise InputError(
            f"{path}: holds {array.dtype} {list(array.shape)} instead of "
            f"{np.dtype(dtype)} {expected}; it is not this run's: delete it and {remedy}"
        )
    return array, says or {}


def _mapped(path: Path, remedy: str) -> tuple[np.memmap, dict[str, Any] | None]:
    """An array of a local file, and what the file says about itself.

    Raises:
        InputError: not a NumPy array (a checkpoint in its place, say), or one of another length
            than the file has.
    """
    with foreign.reading(path, f"delete it and {remedy}", "not a NumPy array"):
        array = np.lib.format.open_memmap(path, "r")
    end, size = array.offset + array.nbytes, path.stat().st_size - _TRAILER
    tail = b""
    if 0 < size - end <= _LONGEST:
        with path.open("rb") as file:
            file.seek(end)
            tail = file.read(size - end)
    says = _parsed(tail)
    if size != end and says is None:
        raise InputError(
            f"{path}: damaged: its array is of {array.nbytes} bytes, and the file has "
            f"{size - array.offset} for it; delete it and {remedy}"
        )
    return array, says


def array_shape(path: Path) -> tuple[int, ...]:
    """The shape of an array of `write_array` or `write_rows`, whose numbers are not read.

    Raises:
        InputError: a missing or foreign file.
    """
    foreign.check_regular(path, "delete it")
    with foreign.reading(path, "delete it", "not a NumPy array"), path.open("rb") as file:
        np.lib.format.read_magic(cast(Any, file))
        shape: tuple[int, ...] = np.lib.format.read_array_header_1_0(cast(Any, file))[0]
    return shape


def _is_as_written(path: Path) -> bool:
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END) - _TRAILER
        if left < 0:
            return False
        file.seek(0)
        digest = hashlib.sha256()
        while left:
            block = file.read(min(left, _COPY))
            digest.update(block)
            left -= len(block)
        return file.read() == _MARK + digest.hexdigest().encode() + b"\n"


@contextmanager
def _reading(path: Path, remedy: str) -> Iterator[None]:
    """Tell an object that is missing from a store that fails, which must not pass for damage."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    except Exception as error:
        raise OSError(errno.EIO, f"cannot be read ({_reason(error)})", str(path)) from None


def _read_remote(
    path: Path,
    dtype: Any,
    shape: Sequence[int | None],
    remedy: str,
    about: Mapping[str, Any] | None,
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Read through a local copy, which is gone from the folder, not the disk, while mapped."""
    with _local_copy(path, remedy) as local:
        return open_array(local, dtype, shape, remedy, about)


@contextmanager
def _local_copy(path: Path, remedy: str) -> Iterator[Path]:
    """A copy of an object on this disk; refusals name the object."""
    store, name = _store(path)
    with tempfile.TemporaryDirectory(prefix="lira_jax_") as folder:
        local = Path(folder) / path.name
        with _reading(path, remedy):
            store.get_file(name, str(local))
        try:
            yield local
        except InputError as error:
            raise InputError(str(error).replace(str(local), str(path))) from None


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
    with suppress(FileNotFoundError):  # another process may be removing it too
        if not path.is_dir() or (not is_remote(path) and path.is_symlink()):
            path.unlink()
        elif is_remote(path):
            path.rmtree()  # type: ignore[attr-defined]
        else:
            shutil.rmtree(path)
