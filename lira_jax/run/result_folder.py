"""Folders of results: one writer at a time, and all files of one writer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lira_jax import storage
from lira_jax.errors import InputError
from lira_jax.run.locks import lock

LOCK, FIGURES = ".lock-attack", "figures"
_MADE = f"{storage.BESIDE}results-"


@contextmanager
def one_writer(out: Path) -> Iterator[None]:
    """Make a folder and be the only process that writes results there; tidy up after killed ones.

    An object store has no locks.

    Raises:
        InputError: a file in the way, no right to write, or another process at work.
    """
    if storage.is_remote(out):
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be made a folder ({error.strerror}); give another"
        ) from None
    if (out / FIGURES).is_symlink():
        raise InputError(
            f"{out / FIGURES}: is a link, and what is there would be overwritten; remove it"
        )
    refusal = (
        f"{out}: another attack.py is at work in this folder; wait for it or stop it, or give "
        "--out another"
    )
    with lock(out / LOCK, range(1), refusal):
        # Not further below: it may be any folder of the user's.
        for folder in (out, out / FIGURES):
            storage.sweep(folder, below=False)
        for name in storage.names(out):
            if name.startswith(_MADE):
                storage.remove(out / name)
        yield


@contextmanager
def replaced(out: Path, heads: Sequence[str], stale: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write results into, which take the place of those in `out` once all are there.

    Until then the old ones stay. While files change places, and in an object store while they are
    uploaded, the heads are missing: there is never a head beside files of other results.

    Args:
        out: folder of `one_writer`.
        heads: the files that readers open first, to be written last.
        stale: other files that an earlier writer may have left.

    Raises:
        InputError: it cannot be written.
    """
    if storage.is_remote(out):
        for name in (*heads, *stale):
            storage.remove(out / name)
        yield out
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_MADE, dir=out) as folder:
            made = Path(folder)
            yield made
            files = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
            for name in (*heads, *stale):
                storage.remove(out / name)
            for file in sorted(files, key=lambda file: (str(file) in heads, file)):
                (out / file).parent.mkdir(exist_ok=True)
                (made / file).replace(out / file)
    except OSError as error:
        raise storage.cannot_write(out, error.strerror or str(error)) from None
