"""Functions that a user names in a configuration as `package.module:function`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lira_jax.config import Experiment, other_data_sets
from lira_jax.errors import InputError


def named(experiment: Experiment) -> dict[str, list[str]]:
    """What an experiment has imported and run, by the field that names it."""
    sources = other_data_sets(experiment.trust).values()
    return {
        "data.name": _code("" if experiment.data.path else experiment.data.name),
        "network.arch": _code(experiment.network.arch),
        "trust.data_sets": [
            source
            for source in sources
            if source and source[0] not in "./~" and not os.path.exists(source)
            for source in _code(source)
        ],
        "attack.extra": [experiment.attack.extra] if experiment.attack.extra else [],
    }


def _code(name: str) -> list[str]:
    return [name] if ":" in name else []


def import_function(name: str, key: str) -> Callable[..., Any]:
    """Import `package.module:function`, from the current folder too.

    Args:
        name: module and attribute, separated by a colon.
        key: configuration key it came from, for messages.

    Raises:
        InputError: the module cannot be imported or has no such function.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with running(f'{key} = "{name}"', "mend that module"):
        function = getattr(importlib.import_module(module_name), attribute, None)
    if not callable(function):
        raise InputError(
            f'{key} = "{name}": {module_name} has no function {attribute!r}; '
            "write package.module:function, importable from here"
        )
    return function


@contextmanager
def running(where: str, advice: str) -> Iterator[None]:
    """Turn whatever a user's own code raises into one line, a call of `exit` too.

    Args:
        where: the code is named.
        advice: what the user should do.

    Raises:
        InputError: in place of any exception but InputError itself and Ctrl-C.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        try:
            text = " ".join(str(error).split())
        except Exception:  # it, too, is the user's own code
            text = "without a text"
        raise InputError(
            f"{where}: {type(error).__name__}: {text} ({frame.filename}, line {frame.lineno}); "
            f"{advice}"
        ) from error
