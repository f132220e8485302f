"""Functions that a user names in a configuration as `package.module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from lira_jax.errors import InputError


def import_function(name: str, key: str) -> Callable[..., Any]:
    """Import `package.module:function`, from the current folder too.

    Args:
        name: module and attribute, separated by a colon.
        key: configuration key it came from, for messages.

    Raises:
        InputError: the module or the function does not exist.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        raise InputError(f'{key} = "{name}": cannot be imported: {error}') from None
    if not callable(function):
        raise InputError(f'{key} = "{name}": is not a function')
    return function
