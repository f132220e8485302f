"""Locks on some models of a run, for as long as a process works on them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lira_jax import foreign
from lira_jax.errors import InputError
from lira_jax.storage import cannot_write, held, is_remote, refuse_deleted


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
        foreign.check_regular(path, "remove it")
        # Through no link: it may lead anywhere.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
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
        held.add(path)
        try:
            yield
        except (InputError, OSError):
            refuse_deleted()  # of which the error may be but a consequence
            raise
        finally:
            held.discard(path)
