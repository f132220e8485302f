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
from lira_jax.fields import fields_of


def load(path: Path) -> Experiment:
    """Read an experiment from a TOML file; fields left out take their defaults.

    Lists may also be text with commas, as earlier versions wrote them.

    Raises:
        InputError: missing file, broken TOML, an unknown key (named with the nearest valid one),
            a value of the wrong type or outside its choices.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; configs/ holds examples") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not readable as TOML: {error}") from None
    # `[run]` is written by training into a run's own config.toml: versions, not settings.
    table.pop("run", None)
    try:
        return _build(Experiment, table)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def to_toml(experiment: Experiment, run: Mapping[str, str]) -> str:
    """The experiment as TOML that `load` reads back, with a [run] table of versions."""
    return tomli_w.dumps(dataclasses.asdict(experiment) | {"run": run})


def _build(cls: type, table: Mapping[str, Any], prefix: str = "") -> Any:
    fields, values = fields_of(cls), {}
    for key, value in table.items():
        name = prefix + key
        if key not in fields:
            raise InputError(f"unknown key `{name}`; {_nearest(name)}")
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
            raise InputError(f"{name} = {value!r}: choose one of {listed}")
    elif typing.get_origin(kind) is tuple:
        if not isinstance(value, (str, list)):
            raise InputError(f"{name} = {value!r}: must be a list in brackets")
    elif kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    elif type(value) is not kind:
        raise InputError(f"{name} = {value!r}: must be {_IN_WORDS[kind]}")
    return value


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
