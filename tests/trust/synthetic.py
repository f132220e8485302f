"""What models might predict on examples and elsewhere, with a leak of any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache

import numpy as np

from lira_jax.config import AttackConfig
from lira_jax.data.membership import blocked_masks
from lira_jax.findings import Findings
from lira_jax.score_set import ScoreSet, logit_scaled
from lira_jax.trust import results
from lira_jax.trust.outputs import Kind, Outputs
from tests import synthetic_findings

# Kinds of inputs: have they a class; and by how much a model is surer of it, or of the likeliest
# where there is none, than on examples that it did not train on [nats].
KINDS = {"test": (True, 0.0), "uniform": (False, 4.0), "digits": (False, 2.0)}


def made(
    seed: int = 0,
    models: int = 4,
    examples: int = 60,
    *,
    leak: float = 2.0,
    classes: int = 4,
    inputs: int = 40,
    block: int = 2,
    kinds: Mapping[str, tuple[bool, float]] = KINDS,
    fit: bool = True,
    laplace: bool = True,
) -> tuple[Outputs, ScoreSet]:
    """Predictions of models in blocks that share masks: each trained on half of the examples.

    Args:
        leak: by how much more a model is sure of its members [nats]; with 0 and no lift of a kind,
            examples and inputs are exchangeable.
        inputs: of each kind.
        fit: with held-out images for temperatures.
        laplace: with both Laplace predictions, which are like the plain ones but less sure.

    Returns:
        Outputs, and the score set with logits and labels.
    """
    rng = np.random.default_rng(seed)
    keep = blocked_masks(seed, models, examples, block // 2, block)
    labels, logits = _predicted(rng, leak * keep, classes, by_class=True)
    found = {}
    for name in [*kinds, "fit"] if fit else kinds:
        labelled, lift = kinds.get(name, (True, 0.0))
        lifts = np.full((models, inputs), lift)
        classed, rows = _predicted(rng, lifts, classes, by_class=labelled)
        truth = classed if labelled else np.full(inputs, -1, np.int32)
        pictures = rng.integers(0, 256, (min(inputs, 8), 8, 8, 1)).astype(np.uint8)
        every = {"plain": rows} | (_less_sure(rows) if laplace else {})
        found[name] = Kind(name, f"{name}, in words", 1.0, truth, pictures, every)
    held_out = found.pop("fit", None)
    outputs = Outputs(tuple(found.values()), held_out, _less_sure(logits) if laplace else {})
    phi = logit_scaled(logits, labels)[..., np.newaxis].astype(np.float32)
    return outputs, ScoreSet(phi, keep, block, "runs/synthetic", labels, logits)


def _predicted(
    rng: np.random.Generator, lift: np.ndarray, classes: int, *, by_class: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Classes and logits of inputs that are as hard to all models alike; lifted is the right class,
    or else the likeliest one."""
    models, inputs = lift.shape
    labels = rng.integers(classes, size=inputs).astype(np.int32)
    base = rng.normal(size=(inputs, classes))
    base[np.arange(inputs), labels] += rng.normal(2.0, 1.5, inputs)
    logits = base + rng.normal(size=(models, inputs, classes))
    lifted = np.broadcast_to(labels, lift.shape) if by_class else logits.argmax(axis=2)
    logits += lift[..., np.newaxis] * (lifted[..., np.newaxis] == np.arange(classes))
    return labels, logits.astype(np.float32)


def _less_sure(logits: np.ndarray) -> dict[str, np.ndarray]:
    return {"probit": logits / np.float32(1.5), "sampled": logits / np.float32(1.6)}


@cache
def findings() -> Findings:
    """Findings with what attacks make of it, plain and with a fitted temperature."""
    outputs, held = made(laplace=False)
    metrics, drawn = results.results(outputs, held, AttackConfig(temperatures="fit"))
    usual = synthetic_findings.usual()
    whole = usual.metrics | {"trust": metrics}
    return dataclasses.replace(
        usual, metrics=whole, trust=drawn, score_set=held, vulnerability=None
    )
