"""Stage 2 from a clone of the repository; `pip install .` installs it as `lira-jax score`."""

from lira_jax.commands.parsing import run_stage
from lira_jax.commands.score import main

if __name__ == "__main__":
    run_stage(main)
