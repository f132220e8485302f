"""Functions that a user names in a configuration as `package.module:function`."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lira_jax.errors import InputError


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
    try:
        function = getattr(importlib.import_module(module_name), attribute, None)
    except Exception as error:  # a user's module may raise anything
        raise failure(f'{key} = "{name}"', error, "mend that module") from error
    if not callable(function):
        raise InputError(
            f'{key} = "{name}": {module_name} has no function {attribute!r}; '
            "write package.module:function, importable from here"
        )
    return function


def failure(where: str, error: Exception, advice: str) -> InputError:
    """What a user's own code raised, as one line with file and line number."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return InputError(
        f"{where}: {type(error).__name__}: {text} ({frame.filename}, line {frame.lineno}); {advice}"
    )
