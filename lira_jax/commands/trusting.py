"""Code that a run of a stranger names: it is imported if the user says so, and not before.

What the user names, on the command line or in a configuration file given there, is the user's own.
What stands in a run alone is not: the run may have come from anywhere.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lira_jax.config import Experiment
from lira_jax.errors import InputError
from lira_jax.run import run_dir
from lira_jax.user_code import named


def untrusted(
    of_run: Experiment, own: Experiment, trust_code: bool, fields: Collection[str]
) -> dict[str, str]:
    """Code that stands in a run alone, by the field that names it.

    Args:
        of_run: as the run has it, with what the command line changes.
        own: what the user gave, the defaults elsewhere.
        trust_code: the user trusts all of it.
        fields: those that the command would import from.
    """
    if trust_code:
        return {}
    given = {name for names in named(own).values() for name in names}
    return {
        field: name
        for field, names in named(of_run).items()
        if field in fields
        for name in names
        if name not in given
    }


def check(
    run: Path, of_run: Experiment, own: Experiment, trust_code: bool, fields: Collection[str]
) -> None:
    """Refuse to import code that stands in a run alone.

    Raises:
        InputError: naming the code, the file that names it, and the flag.
    """
    for field, name in untrusted(of_run, own, trust_code, fields).items():
        raise InputError(
            f'{run / run_dir.CONFIG}: {field} = "{name}" is code, which this command would run; '
            "look at it, and if you trust it give --trust-code True"
        )
