"""Stage 3 from a clone of the repository; `pip install .` installs it as `lira-jax attack`."""

from lira_jax.commands.attack import main
from lira_jax.commands.parsing import run_stage

if __name__ == "__main__":
    run_stage(main)
