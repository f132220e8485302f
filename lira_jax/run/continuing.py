"""Under which other configuration a run may go on: one that trains the same models."""

from __future__ import annotations

from typing import Any

from lira_jax.config import Experiment, flatten, keep_fraction

# Fields that change no trained weight (at width 1) and so may differ when a run goes on. Where data
# lie may change too: a digest tells whether they are the same.
FREE_TO_CHANGE = frozenset(
    {
        "data.name",
        "data.path",
        "train.models",
        "train.checkpoint_minutes",
        "train.group",
        "train.eval_examples",
    }
)


def differences(old: Experiment, new: Experiment) -> list[tuple[str, Any, Any]]:
    """Fields in which two experiments would train differently: of seed, data, network, train and
    defence."""
    before, after = flatten(old), flatten(new)
    return [
        (name, before[name], after[name])
        for name in before
        if before[name] != after[name]
        and not (name == "train.keep" and keep_fraction(before[name]) == keep_fraction(after[name]))
        and not (name == "data.canary_kind" and not before["data.canaries"])
        # A digest tells whether the weights are the same.
        and not (name == "defence.transfer_from" and before[name] and after[name])
        and name not in FREE_TO_CHANGE
        and not name.startswith(("score.", "label_only.", "trust.", "attack."))
    ]
