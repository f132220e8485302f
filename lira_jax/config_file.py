"""Experiments as TOML files."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w

from lira_jax.config import Experiment, flatten
from lira_jax.errors import InputError
from lira_jax.fields import MOST_SHOWN, fields_of, shown
from lira_jax.foreign import check_regular, reading

MOST_BYTES = 10**6


def load(path: Path) -> Experiment:
    """Read an experiment from a TOML file; fields left out take their defaults.

    Lists may also be text with commas, as earlier versions wrote them.

    Raises:
        InputError: missing file, broken TOML, an unknown key (named with the nearest valid one),
            a value of the wrong type or outside its choices, a number beyond 64 bits.
    """
    return _load(path)[0]


def load_versions(path: Path) -> dict[str, str]:
    """What training recorded under [run] in a run's own config.toml: versions and digests.

    Raises:
        InputError: as `load`.
    """
    return _load(path)[1]


def _load(path: Path) -> tuple[Experiment, dict[str, str]]:
    advice = "give a TOML file; configs/ holds examples"
    if isinstance(path, Path):  # an object store has nothing but files
        check_regular(path, advice)
    try:
        with reading(path, advice, "not readable as TOML"):
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise InputError(f"{path}: has more than {MOST_BYTES:,} bytes; {advice}")
            table = tomllib.loads(content.decode("utf-8-sig").replace("\r\n", "\n"))
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{path}: no such file; configs/ holds examples") from None
        raise
    try:
        _check_numbers(table)
        run = table.pop("run", {})
        if not isinstance(run, dict):
            raise InputError("`run` is a section: write [run]")
        for key, value in run.items():
            if not isinstance(value, str):
                raise InputError(f"{shown(f'run.{key}')} = {_shown(value)}: must be text in quotes")
        return _build(Experiment, table), run
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _check_numbers(table: Mapping[str, Any]) -> None:
    """Refuse what TOML does not promise to keep, wherever it is."""
    left: list[Any] = [table]
    while left:
        value = left.pop()
        if isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"{shown(value)}: must be a whole number of at most 64 bits")


def to_toml(experiment: Experiment, run: Mapping[str, str]) -> str:
    """The experiment as TOML that `load` reads back, with a [run] table of versions."""
    return tomli_w.dumps(dataclasses.asdict(experiment) | {"run": run})


def _build(cls: type, table: Mapping[str, Any], prefix: str = "") -> Any:
    fields, values = fields_of(cls), {}
    for key, value in table.items():
        name = prefix + key
        if key not in fields:
            raise InputError(f"unknown key `{shown(name)}`; {_nearest(name)}")
        kind = fields[key].kind
        if not dataclasses.is_dataclass(kind):
            values[key] = _checked(name, value, kind)
        elif isinstance(value, dict):
            values[key] = _build(typing.cast(type, kind), value, f"{name}.")
        else:
            raise InputError(f"`{name}` is a section: write [{name}]")
    return cls(**values)


def _checked(name: str, value: Any, kind: Any) -> Any:
    """The value of a field, if it has its type."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices or type(value) is not type(choices[0]):
            listed = ", ".join(str(choice) for choice in choices)
            raise InputError(f"{name} = {_shown(value)}: choose one of {listed}")
    elif typing.get_origin(kind) is tuple:
        if not isinstance(value, (str, list)):
            raise InputError(f"{name} = {_shown(value)}: must be a list in brackets")
    elif kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    elif type(value) is not kind:
        raise InputError(f"{name} = {_shown(value)}: must be {_IN_WORDS[kind]}")
    return value


def _shown(value: Any) -> str:
    """Text in quotes, and anything else as it is."""
    return shown(repr(value[:MOST_SHOWN]) if isinstance(value, str) else value)


_IN_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
}


def _nearest(name: str) -> str:
    """The valid key that the user most likely meant: in the same section, in another, a section."""
    valid = list(flatten(Experiment()))
    section, _, word = name.rpartition(".")
    own = {key.rpartition(".")[2]: key for key in valid if key.rpartition(".")[0] == section}
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(valid)}
    if not section:
        own |= {item.name: f"[{item.name}]" for item in dataclasses.fields(Experiment)[1:]}
    for keys, likeness in ((elsewhere, 1.0), (own, 0.5), (elsewhere, 0.7)):
        near = difflib.get_close_matches(word, keys, 1, likeness)
        if near:
            return f"did you mean `{keys[near[0]]}`?"
    return f"valid keys: {', '.join(own.values())}"
