"""The wheel in an empty environment, used from another folder: `try_wheel.py WHEEL CONSTRAINTS`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# Scores of a model that knows 40 examples a little, made without the repository.
SCORES = """
from pathlib import Path
import numpy as np
import lira_jax
random = np.random.default_rng(0)
half = random.random((8, 40)) < 0.5
keep = np.stack([half, ~half], axis=1).reshape(16, 40)
np.savez("scores.npz", scores=random.normal(size=keep.shape) + 2 * keep, keep=keep)
assert "site-packages" in lira_jax.__file__, lira_jax.__file__
assert lira_jax.read_npz(Path("scores.npz")).keep.shape == (16, 40)
"""


def main() -> None:
    wheel, constraints = (Path(path).resolve() for path in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "venv", with_pip=True)
        programs = Path(folder) / "venv" / "bin"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

        def run(program: str, *words: str | Path) -> None:
            subprocess.run([programs / program, *words], cwd=folder, env=environment, check=True)

        run("pip", "install", "--quiet", "--constraint", constraints, wheel)
        run("python", "-c", SCORES)
        for command in ("train", "score", "attack", "compare", "target"):
            run("lira-jax", command, "--help")
        run("lira-jax", "attack", "--scores", "scores.npz", "--out", "attacked")
        assert (Path(folder) / "attacked" / "report.html").stat().st_size > 10**5


if __name__ == "__main__":
    main()
