"""The command that `pip install` installs: `lira-jax train | score | attack | compare | target`."""

from __future__ import annotations

import argparse
import sys
from pkgutil import resolve_name

from lira_jax import __version__
from lira_jax.commands.parsing import run_stage

COMMANDS = {
    "train": "lira_jax.commands.train:main",
    "score": "lira_jax.commands.score:main",
    "attack": "lira_jax.commands.attack:main",
    "compare": "lira_jax.commands.attack:compare",
    "target": "lira_jax.commands.attack:target",
}


def main() -> None:
    parser = argparse.ArgumentParser("lira-jax", description="Who was in the training set?")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, help="each explains itself with --help")
    command = parser.parse_args(sys.argv[1:2]).command
    sys.argv[:2] = [f"lira-jax {command}"]
    run_stage(resolve_name(COMMANDS[command]))
