"""Files that are whole or absent, arrays that tell when they are damaged, and locks.

Every file is written beside its place and moved there, so that a kill at any moment leaves the old
file or the new one. An array ends in a checksum of all that comes before it; `numpy.load` does not
mind. A folder may be in Google's object store, `gs://bucket/…`, where an object appears whole, once
it is uploaded. No JAX.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from lira_jax.errors import InputError

_MARK = b"\nsha256 "
_TRAILER = len(_MARK) + 64 + 1
BESIDE = ".unfinished-"
_COPY = 2**22
_held: set[Path] = set()  # the locks of this process


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
    _refuse_deleted()
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


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written anywhere below a folder: what none locks."""
    if is_remote(folder):
        return
    for where, _, files in os.walk(folder):
        for name in files:
            if name.startswith(BESIDE):
                with suppress(OSError), (Path(where) / name).open("rb") as file:
                    if _lock(file):
                        (Path(where) / name).unlink(missing_ok=True)


def write_checked(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file whole or not at all, and a checksum after what `write` writes."""

    def write_both(file: BinaryIO) -> None:
        write(file)
        file.seek(0)
        digest = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(_MARK + digest.encode() + b"\n")

    write_whole(path, write_both)


def read_checked(path: Path, remedy: str) -> bytes:
    """What `write` wrote for `write_checked`.

    Raises:
        InputError: missing, truncated or changed.
        OSError: a disk or an object store that does not give it.
    """
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
    return content[:-_TRAILER]


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy with its checksum, whole or not at all."""
    write_rows(path, array.dtype, array.shape, [array])


def write_rows(path: Path, dtype: Any, shape: Sequence[int], parts: Iterable[np.ndarray]) -> None:
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

    write_checked(path, write)


def read_array(path: Path, dtype: Any, shape: Sequence[int | None], remedy: str) -> np.ndarray:
    """Memory-map an array after checking that it is what was written, and what belongs there.

    Args:
        path: an .npy file of `write_array` or `write_rows`.
        dtype: expected element type.
        shape: expected shape; None accepts any length.
        remedy: what the user should do, for the message.

    Raises:
        InputError: missing, truncated, changed or foreign file, another dtype or shape.
        OSError: an object store that does not give it.
    """
    if is_remote(path):
        return _read_remote(path, dtype, shape, remedy)
    try:
        whole = _is_as_written(path)  # before the header, of which any part may be damaged
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    except IsADirectoryError:
        whole = False
    if not whole:
        raise InputError(
            f"{path}: damaged: its length or checksum is not what was written; "
            f"delete it and {remedy}"
        )
    try:
        array = np.lib.format.open_memmap(path, "r")
    except ValueError as error:  # a checkpoint in its place, say
        raise InputError(f"{path}: not a NumPy array ({error}); delete it and {remedy}") from None
    expected = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    fits = array.ndim == len(shape) and all(
        size in (None, actual) for size, actual in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise InputError(
            f"{path}: holds {array.dtype} {list(array.shape)} instead of "
            f"{np.dtype(dtype)} {expected}; it is not this run's: delete it and {remedy}"
        )
    return array


def array_shape(path: Path) -> tuple[int, ...]:
    """The shape of an array of `write_array` or `write_rows`, whose numbers are not read.

    Raises:
        InputError: a missing or foreign file.
    """
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(cast(Any, file))
            return np.lib.format.read_array_header_1_0(cast(Any, file))[0]
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{path}: not a NumPy array ({error}); delete it") from None


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


def _read_remote(path: Path, dtype: Any, shape: Sequence[int | None], remedy: str) -> np.ndarray:
    """Read through a local copy, which is gone from the folder, not the disk, while mapped."""
    store, name = _store(path)
    with tempfile.TemporaryDirectory(prefix="lira_jax_") as folder:
        local = Path(folder) / path.name
        with _reading(path, remedy):
            store.get_file(name, str(local))
        try:
            return read_array(local, dtype, shape, remedy)
        except InputError as error:
            raise InputError(str(error).replace(str(local), str(path))) from None


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
    with suppress(FileNotFoundError):  # another process may be removing it too
        if not path.is_dir():
            path.unlink()
        elif is_remote(path):
            path.rmtree()  # type: ignore[attr-defined]
        else:
            shutil.rmtree(path)


@contextmanager
def lock(path: Path, numbers: range, refusal: str) -> Iterator[None]:
    """Hold a lock on some models for as long as this process works on them.

    Byte n of the file stands for model n, so ranges conflict exactly where they overlap, and the
    kernel lets go when the process ends, however it ends. Object stores have no locks.

    Raises:
        InputError: another process holds one of them; the message is `refusal`.
    """
    if is_remote(path) or not numbers:
        yield
        return
    try:
        import fcntl  # not on Windows

        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except ImportError:
        yield
        return
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error)) from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, len(numbers), numbers.start)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InputError(refusal) from None
            print(
                f"{path}: this file system has no locks ({error.strerror}); make sure yourself "
                "that no other process works on the same models",
                flush=True,
            )
        _held.add(path)
        try:
            yield
        except (InputError, OSError):
            _refuse_deleted()  # of which the error may be but a consequence
            raise
        finally:
            _held.discard(path)


def _refuse_deleted() -> None:
    """Refuse to go on where a folder at work has been deleted or moved."""
    for path in sorted(_held):
        if not path.exists():
            raise InputError(
                f"{path.parent}: is gone: deleted or moved while this command was at work on it; "
                "put it back to go on, or begin anew"
            )
