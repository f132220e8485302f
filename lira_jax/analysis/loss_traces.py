"""Who is likely to be exposed, told by training alone (Pollock et al. 2024, arXiv 2411.05743).

An example whose loss moves much while a model trains on it is one that the model comes to remember.
The interquartile range of the loss over epochs ranks examples before there is a shadow model; what
an attack found afterwards tells how good the ranking was. docs/methods.md, "Before any shadow model
is trained".

NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from lira_jax import evaluation
from lira_jax.config import Experiment
from lira_jax.csv_text import csv_text
from lira_jax.findings import Vulnerability
from lira_jax.run import run_dir
from lira_jax.run.loss_traces import FOLDER, read_all

# The shares of the examples that are called likely, and most, exposed.
SHARES = (0.01, 0.05)


def interquartile_ranges(
    traces: Sequence[Float32[np.ndarray, "T M"]], keep: Bool[np.ndarray, "B E"]
) -> Float[np.ndarray, " E"]:
    """The interquartile range of each example's loss over epochs, the mean over the models that
    trained on it.

    Quartiles are NumPy's, linear between epochs. Rows of NaN, of epochs after early stopping, are
    left out; a model that has no others tells nothing.

    Args:
        traces: of each model of a block; columns are its members, in order.
        keep: who trained on what; every example is in at least one.
    """
    total = np.zeros(keep.shape[1])
    for trace, inside in zip(traces, keep, strict=True):
        trained = trace[~np.isnan(trace).all(axis=1)].astype(np.float64)
        if len(trained):
            low, high = np.quantile(trained, (0.25, 0.75), axis=0)
            total[inside] += high - low
    return total / keep.sum(axis=0)


def of_run(run: Path, experiment: Experiment) -> Float[np.ndarray, " E"] | None:
    """The ranges of a run whose training kept traces of the whole first block; else None.

    Raises:
        InputError: damaged or foreign traces or masks.
    """
    if not (run / FOLDER).exists():
        return None
    keep, _ = run_dir.read_membership(run, experiment)
    traces = read_all(run, experiment, keep)
    return None if traces is None else interquartile_ranges(traces, keep[: len(traces)])


def most_likely_first(ranges: Float[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    """Examples, the largest range first; of equal ones, by place in the data."""
    return np.argsort(-ranges, kind="stable")


def as_csv(
    ranges: Float[np.ndarray, " E"],
    labels: Int[np.ndarray, " E"],
    canary: Bool[np.ndarray, " E"],
) -> str:
    """One line per example, most likely exposed first; `canary` is 1 for inserted points."""
    return csv_text(
        [
            {
                "rank": rank,
                "example": example,
                "label": int(labels[example]),
                "iqr": f"{ranges[example]:.6g}",
                "canary": int(canary[example]),
            }
            for rank, example in enumerate(most_likely_first(ranges).tolist(), 1)
        ]
    )


def judged(
    ranges: Float[np.ndarray, " E"] | None, exposed: Vulnerability, natural: Bool[np.ndarray, " E"]
) -> dict[str, Any] | None:
    """How many of the examples named by their loss traces an attack found most exposed.

    The interval of a precision is Clopper and Pearson's, for as many trials as examples were named.

    Args:
        ranges: of `of_run`.
        exposed: what the attack found.
        natural: examples that are no canaries, which alone are looked at.

    Returns:
        `loss_traces` of `metrics.json`: the attack, and `precision` by the share of examples named;
        None where there are no ranges.
    """
    if ranges is None:
        return None
    total = int(natural.sum())
    likely = most_likely_first(ranges[natural])
    found = np.argsort(exposed.rank[natural])
    precision = {}
    for share in SHARES:
        named = max(1, round(share * total))
        hits = len(np.intersect1d(likely[:named], found[:named]))
        low, high = evaluation.clopper_pearson(hits, named)
        precision[f"{share:g}"] = {
            "named": named,
            "hits": hits,
            "precision": hits / named,
            "precision_ci": [float(low), float(high)],
            "chance": named / total,
        }
    return {"attack": exposed.attack, "examples": total, "precision": precision}
