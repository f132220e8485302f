"""What scoring makes of a run: arrays with a row for every model (label-only: for every example).

Rows are written in parts, `PARTS/NAME_FIRST-LAST.npy`, and put together into NAME.npy once all are
there. What a product was made with is its `settings`, recorded in NAME.json and checked wherever
the product is gone on with. Label-only answers and trust predictions have NAME.json from before
their first part on; scores have it beside the whole, and until then in the names of their parts.
Once the product is whole, NAME.json says so, and from then on a file that is missing is missed.
Every file says about itself which run's it is, what it holds, of which rows and with which
settings. No JAX.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from lira_jax import foreign
from lira_jax.errors import InputError
from lira_jax.storage import (
    is_remote,
    names,
    open_array,
    read_array,
    remove,
    write_array,
    write_rows,
    write_text,
)


@dataclass(frozen=True)
class Product:
    """Arrays that are made together.

    Attributes:
        arrays: name of each array, and the shape of what it holds of one model and example.
        parts: folder of the parts.
        command: what makes it.
        settings: by name, what it depends on and its shape does not tell.
        usual: the settings of files without NAME.json, since those before there was a choice have
            none; None where there always was one.
        record_first: whether NAME.json is written before the first part. Else parts carry the
            settings in their names.
        binding: what its files say about themselves beside their own name, rows and settings: the
            run they belong to, and models asked.
        made_with: versions of what computes it, which files tell too.
    """

    arrays: Mapping[str, tuple[int, ...]]
    parts: str
    command: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, Any] | None = None
    record_first: bool = False
    binding: Mapping[str, Any] = field(default_factory=dict)
    made_with: str = ""

    @property
    def remedy(self) -> str:
        return f"run {self.command} again, or give {self.command} --repair True"

    @property
    def name(self) -> str:
        """Of its first array."""
        return next(iter(self.arrays))

    @property
    def record(self) -> str:
        """The name of the file that tells the settings."""
        return f"{self.name}.json"

    @property
    def files(self) -> list[str]:
        """The names of its own files, without the record."""
        return [f"{name}.npy" for name in self.arrays]

    def part(self, name: str, first: int, last: int) -> str:
        return f"{self._stem(name)}_{first:05d}-{last:05d}.npy"

    def rows_of(self, part: str) -> tuple[int, int] | None:
        """First and last row of a part; None if the file is no part of this product."""
        match = re.fullmatch(rf"{re.escape(self._stem(self.name))}_(\d+)-(\d+)\.npy", part)
        return (int(match[1]), int(match[2])) if match else None

    def about(self, name: str, first: int | None = None, last: int | None = None) -> dict[str, Any]:
        """What a file must say about itself: the whole, or a part with these rows; nothing where
        the product is bound to no run."""
        if not self.binding:
            return {}
        rows = {} if first is None else {"rows": [first, last]}
        return {**self.binding, "holds": name, **rows, "settings": dict(self.settings)}

    def _stem(self, name: str) -> str:
        unnamed = self.record_first or self.settings == self.usual
        return "_".join([name, *([] if unnamed else map(repr, self.settings.values()))])


def read_record(path: Path, remedy: str) -> dict[str, Any] | None:
    """The table of a .json file, such as the settings of a product; None if there is none.

    Raises:
        InputError: damaged; do `remedy`.
    """
    if not path.exists():
        _refuse_dangling(path, remedy)
        return None
    table = foreign.read_json(path, remedy)
    if not isinstance(table, dict):
        raise InputError(f"{path}: damaged (no table); {remedy}")
    return table


def recorded(folder: Path, product: Product) -> Mapping[str, Any] | None:
    """The settings that a product was made with; None where nothing tells them.

    Raises:
        InputError: its record is damaged.
    """
    table = read_record(folder / product.record, _anew(product))
    if table is None:
        return product.usual
    return {key: value for key, value in table.items() if key != _WHOLE}


def is_there(path: Path, record: str, remedy: str) -> bool:
    """Whether a file of a product is there to be read.

    Args:
        record: name of the file beside it that tells the settings, and whether all was made.
        remedy: what the user should do where it should be there.

    Raises:
        InputError: it is not, though the record says that it was made; or it is a link to nothing,
            or no file.
    """
    if path.exists():
        return True
    _refuse_dangling(path, remedy)
    if (read_record(path.with_name(record), remedy) or {}).get(_WHOLE):
        raise InputError(
            f"{path}: is missing, and {record} says that it was made; put it back, or {remedy}"
        )
    return False


def check_settings(folder: Path, product: Product, *, repair: bool = False) -> None:
    """Refuse to go on with a product that was made with other settings, or with unknown ones.

    Args:
        repair: remove what was made with unknown ones.

    Raises:
        InputError: it was.
    """
    kept = [*product.files, *[product.parts, product.record] * product.record_first]
    made = next((folder / name for name in kept if (folder / name).exists()), None)
    if made is None:
        return
    try:
        settings = recorded(folder, product)
        if settings is None or not product.settings.keys() <= settings.keys():
            raise InputError(
                f"{made}: {product.record}, which tells its settings, is missing or incomplete; "
                f"{_anew(product)}"
            )
    except InputError as error:
        if not repair:
            raise
        print(f"removed: {error}")
        for name in (*kept, product.record):
            remove(folder / name)
        return
    for key, value in settings.items():
        if value != product.settings.get(key):
            raise InputError(
                f"{made}: made with {key} = {value}, not {product.settings.get(key)}; ask for the "
                f"same to go on with it, or delete {_everything(product)} to make it anew"
            )


def check_all_settings(folder: Path, products: Sequence[Product]) -> None:
    """Refuse before anything is made what `check_settings` refuses of any product, all at once.

    Raises:
        InputError: some were made with other settings, or with unknown ones.
    """
    refused = []
    for product in products:
        try:
            check_settings(folder, product)
        except InputError as error:
            refused.append((product.name, str(error)))
    if refused:
        others = ", ".join(name for name, _ in refused[1:])
        more = f"; likewise {others}: to make all anew, delete {folder}" * bool(others)
        raise InputError(refused[0][1] + more)


def _refuse_dangling(path: Path, remedy: str) -> None:
    if not is_remote(path) and path.is_symlink() and not path.exists():
        raise InputError(
            f"{path}: is a link to nothing; put back what it led to, or delete it and {remedy}"
        )


# Under this a record tells how many rows there are, once all files of its product are there.
_WHOLE = "whole"


def write_record(path: Path, table: Mapping[str, Any]) -> None:
    """Write what `read_record` reads."""
    write_text(path, json.dumps(dict(table)) + "\n")


def _everything(product: Product) -> str:
    return f"{', '.join([product.record, *product.files])} and {product.parts} there"


def _anew(product: Product) -> str:
    return (
        f"delete {_everything(product)} and run {product.command} again, or give {product.command} "
        "--repair True"
    )


def write_part(folder: Path, product: Product, first: int, *arrays: np.ndarray) -> None:
    """Write float32 arrays [R, …] of R rows from `first` on; they count once all are there."""
    last = first + len(arrays[0]) - 1
    for name, array in reversed(list(zip(product.arrays, arrays, strict=True))):
        about = product.about(name, first, last) | _made_with([product.made_with])
        write_array(folder / product.parts / product.part(name, first, last), array, about)


def _made_with(versions: Iterable[str]) -> dict[str, Any]:
    """What a file tells of the versions that computed its rows."""
    known = sorted({text for text in versions if text})
    return {"made_with": known} if known else {}


def parts_of(folder: Path, product: Product) -> list[tuple[int, int]]:
    """First and last row of each part."""
    return [rows for rows in map(product.rows_of, names(folder / product.parts)) if rows]


@dataclass(frozen=True)
class Made:
    """Where the rows of a product are.

    Attributes:
        whole: rows in the product's own files, the first so many.
        parts: (first, last) of the parts that hold the others.
        made_with: the versions that computed them, as far as files tell.
    """

    whole: int
    parts: list[tuple[int, int]]
    made_with: frozenset[str] = frozenset()

    @property
    def rows(self) -> set[int]:
        in_parts = (n for first, last in self.parts for n in range(first, last + 1))
        return {*range(self.whole), *in_parts}


def made(
    folder: Path, product: Product, rows: int, columns: int, share: range | None = None,
    *, repair: bool = False,
) -> Made:  # fmt: skip
    """What has been made so far.

    Args:
        folder: of the product.
        rows: of the whole, such as models.
        columns: of the whole, such as examples.
        share: rows whose parts are read and checked; those of others are taken as they are named,
            until they are put together. Default all.
        repair: remove damaged files among these, so that their rows count as not made.

    Raises:
        InputError: a damaged or foreign file, or one made with other views or settings.
    """

    made_with: set[str] = set()

    def rows_in(path: Path, name: str, rows: tuple[int, int] | tuple[()] = ()) -> int:
        shape = product.arrays[name]
        count = rows[1] - rows[0] + 1 if rows else None
        expected = (None,) if name == "scores" else shape
        about = product.about(name, *rows)
        try:
            _refuse_dangling(path, product.remedy)
            if not path.exists():
                return 0
            array, says = open_array(
                path, np.float32, (count, columns, *expected), product.remedy, about
            )
            made_with.update(says.get("made_with", ()))
        except InputError as error:
            if not repair:
                raise
            print(f"removed: {error}")
            remove(path)
            return 0
        if array.shape[2:] != shape:
            views, place = array.shape[2], path if count is None else path.parent
            raise InputError(
                f"{path}: holds {views} views, not score.views = {shape[0]}; give "
                f"--score.views {views} to go on with it, or delete {place} to score anew"
            )
        return len(array)

    check_settings(folder, product, repair=repair)
    _refuse_other_parts(folder, product)
    # Parts before the whole: whoever puts them together removes them only afterwards.
    parts = []
    for first, last in parts_of(folder, product):
        size = last - first + 1
        paths = {
            name: folder / product.parts / product.part(name, first, last)
            for name in product.arrays
        }
        if share is None or first in share:
            there = all(
                [rows_in(path, name, (first, last)) == size for name, path in paths.items()]
            )
        else:
            there = all(path.exists() for path in paths.values())
        if there and last < rows:
            parts.append((first, last))
    whole = min([rows_in(folder / f"{name}.npy", name) for name in product.arrays])
    left = [(first, last) for first, last in parts if last >= whole]
    return Made(whole, left, frozenset(made_with))


def _refuse_other_parts(folder: Path, product: Product) -> None:
    """Refuse parts made with other settings than the usual, which the end of this would remove."""
    files = [name for name in names(folder / product.parts) if name.startswith(f"{product.name}_")]
    other = next((name for name in files if not product.rows_of(name)), None)
    if product.usual and other:
        listed = ", ".join(f"{key} = {value}" for key, value in product.settings.items())
        raise InputError(
            f"{folder / product.parts / other}: not made with {listed}; give what it was made with "
            f"to go on with it, or delete {folder / product.parts} to score anew"
        )


def assemble(folder: Path, product: Product, rows: int, columns: int) -> list[int]:
    """Write a product's own files once it has all rows, and remove the parts.

    Whichever shard finishes last does it; two that finish together write the same bytes.

    Returns:
        Rows not made yet; if there are any, nothing is written.

    Raises:
        InputError: a damaged or foreign file.
    """
    nobody = range(0)
    so_far = made(folder, product, rows, columns, nobody)
    missing = sorted(set(range(rows)) - so_far.rows)
    if missing:
        return missing

    def each_row(
        name: str, shape: tuple[int | None, ...], about: dict[str, Any]
    ) -> Iterator[np.ndarray]:
        made_with: set[str] = set()

        def read(path: Path, *rows: int) -> np.ndarray:
            own = product.about(name, *rows)
            array, says = open_array(path, np.float32, shape, product.remedy, own)
            made_with.update(says.get("made_with", ()))
            about.update(_made_with(made_with))
            return array

        if so_far.whole:
            yield from read(folder / f"{name}.npy")[: so_far.whole, None]
        done = so_far.whole
        for first, last in sorted(so_far.parts):
            path = folder / product.parts / product.part(name, first, last)
            yield from read(path, first, last)[done - first :, None]
            done = max(done, last + 1)

    try:
        if so_far.whole < rows:
            # Of files deleted since, it may tell other settings.
            write_record(folder / product.record, product.settings)
            # Rows count only where all files have them, so a kill between two loses none.
            for name, inner in reversed(list(product.arrays.items())):
                about = product.about(name)
                each = each_row(name, (None, columns, *inner), about)
                write_rows(folder / f"{name}.npy", np.float32, (rows, columns, *inner), each, about)
        write_record(folder / product.record, {**product.settings, _WHOLE: rows})
    except InputError:
        # Another shard may have put all together and removed the parts while this one read them.
        if made(folder, product, rows, columns, nobody).whole < rows:
            raise
    remove(folder / product.parts)
    return []


def read_rows(
    path: Path,
    inner: Sequence[int | None],
    models: int,
    remedy: str,
    product: Product,
) -> Float32[np.ndarray, "N ..."] | None:
    """An array [N, …] that is there for all models, memory-mapped; None if it is not yet.

    Args:
        path: of a file of the product, in its folder.
        inner: shape behind the models.
        models: N.
        remedy: what the user should do.
        product: with the run that it belongs to; its settings are those that its record tells.

    Raises:
        InputError: it is damaged or foreign, or of more models than the run has, or missing though
            it was made.
    """
    if not is_there(path, product.record, remedy):
        return None
    settings = recorded(path.parent, product)
    if settings is None:
        raise InputError(
            f"{path}: {product.record}, which tells its settings, is missing; put it back, or "
            f"delete {path} and {remedy}"
        )
    about = replace(product, settings=settings).about(path.name.removesuffix(".npy"))
    array = read_array(path, np.float32, (None, *inner), remedy, about)
    if len(array) > models:
        raise InputError(f"{path}: holds {len(array)} models, the run {models}; delete it")
    rows = (read_record(path.with_name(product.record), remedy) or {}).get(_WHOLE, len(array))
    if len(array) != rows:
        raise InputError(
            f"{path}: holds {len(array)} models, and {product.record} tells of {rows}; delete it "
            f"and {remedy}"
        )
    return array if len(array) == models else None
