"""The command that `pip install` installs: `lira-jax train | score | attack | compare | target`."""

from __future__ import annotations

import sys

from lira_jax import __version__
from lira_jax.commands.entry import run

COMMANDS = {
    "train": "lira_jax.commands.train:main",
    "score": "lira_jax.commands.score:main",
    "attack": "lira_jax.commands.attack:main",
    "compare": "lira_jax.commands.attack:compare",
    "target": "lira_jax.commands.attack:target",
}


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        command = sys.argv[1]
        sys.argv[:2] = [f"lira-jax {command}"]
        run(COMMANDS[command])
        return
    import argparse  # the way of most calls needs no more than the above

    parser = argparse.ArgumentParser("lira-jax", description="Who was in the training set?")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, help="each explains itself with --help")
    parser.parse_args(sys.argv[1:2])
