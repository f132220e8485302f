"""The scores of finished runs, kept beside this script in float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lira_jax.run import score_files

HERE = Path(__file__).parent


def pack(run: Path, file: Path) -> None:
    """Keep a finished run's scores, and what else attacks need of it."""
    scored = score_files.read_score_set(run)
    arrays = {"scores": scored.scores, "logits": scored.logits, "merlin": scored.merlin,
              "gradient_norm": scored.gradient_norm}  # fmt: skip
    halves = {
        name: np.asarray(array).astype(np.float16)
        for name, array in arrays.items()
        if array is not None
    }
    assert scored.labels is not None
    assert scored.block is not None
    np.savez_compressed(
        file,
        keep=scored.keep,
        labels=np.asarray(scored.labels).astype(np.uint8),
        block=np.array(scored.block),
        **halves,  # type: ignore[arg-type]
    )
