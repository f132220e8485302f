"""What the commands share: their flags, and a configuration with overrides."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from typing import Annotated, TypeVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from lira_jax.commands.entry import Ended
from lira_jax.commands.lists import LISTS
from lira_jax.commands.streams import in_colours
from lira_jax.errors import InputError

T = TypeVar("T")
# On two cores XLA aborted at 2 GB and not at 3; threads' stacks and arenas are most of it.
ADDRESS_SPACE, ADDRESS_SPACE_PER_CORE = 28 * 10**8, 10**8


def _switch(words: list[str]) -> bool:
    if words[1:] or words[:1] not in ([], ["True"], ["False"]):
        raise ValueError("give True or False, or nothing for True")
    return words != ["False"]


Switch = Annotated[
    bool,
    PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="[{True,False}]",
        instance_from_str=_switch,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""A flag that needs no value: `--flag` is `--flag True`."""


def parse(default: T, description: str, arguments: Sequence[str]) -> T:
    """Parse a command line into a dataclass; flags are named as in the TOML files.

    Help and usage errors end the program as usual, with codes 0 and 2. What is `tyro.MISSING` in
    the default must be given.

    Raises:
        InputError: a flag of the command itself, or a word, that is empty.
        Ended: after help or a usage error.
    """
    _refuse_empty_words(arguments)
    try:
        with in_colours():
            return tyro.cli(
                type(default),
                default=default,
                description=description,
                args=list(arguments),
                use_underscores=True,
                registry=LISTS,
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as end:
        raise Ended(end.code if isinstance(end.code, int) else 0) from None


def refuse_small_address_space() -> None:
    """Refuse a limit (`ulimit -v`) within which XLA cannot start its threads: it would abort the
    process in the midst of the work.

    Raises:
        InputError: there is such a limit.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    needed = ADDRESS_SPACE + (os.cpu_count() or 1) * ADDRESS_SPACE_PER_CORE
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise InputError(
            f"not enough memory: this process may have {limit / 1e9:.1f} GB of addresses "
            f"(ulimit -v), and JAX needs {needed / 1e9:.1f} GB on this machine; raise the limit"
        )


def _refuse_empty_words(arguments: Sequence[str]) -> None:
    """An unset variable of a shell is an empty word, which as a path would be the current folder.

    Fields of the configuration, such as `--data.path ""`, may be empty.
    """
    for before, word in zip(("", *arguments), arguments, strict=False):
        flag, separator, value = word.partition("=")
        if not word.strip():
            flag, value = before, word
        elif not (flag.startswith("--") and separator):
            continue
        of_configuration = flag.startswith("--") and "." in flag and "=" not in flag
        if not value.strip() and not of_configuration:
            name = flag if flag.startswith("--") else "one of the words"
            raise InputError(f"{name}: is empty; give it a value, or leave it out")


def parse_ahead(default: T, arguments: Sequence[str]) -> T:
    """Parse a command line to see which run or file its defaults come from; no help is shown."""
    return parse(default, "", [word for word in arguments if word not in ("-h", "--help")])
