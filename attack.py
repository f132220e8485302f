"""Stage 3 from a clone of the repository; `pip install .` installs it as `lira-jax attack`."""

from lira_jax.commands.entry import run

if __name__ == "__main__":
    run("lira_jax.commands.attack:main")
