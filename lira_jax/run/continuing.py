"""What makes a run the one that it is: the settings and data by which its models are trained.

A run may go on under another configuration that trains the same models, and files belong to a run
by a digest of what trains them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
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
    one, other = _trained_by(old), _trained_by(new)
    return [
        (name, before[name], after[name])
        for name in before
        if name in one and name in other and one[name] != other[name]
    ]


def _trained_by(experiment: Experiment) -> dict[str, Any]:
    """The fields on which trained weights depend, each value in one form."""
    values = {
        name: value
        for name, value in flatten(experiment).items()
        if name not in FREE_TO_CHANGE
        and not name.startswith(("score.", "label_only.", "trust.", "attack."))
    }
    values["train.keep"] = list(keep_fraction(values["train.keep"]))
    if not values["data.canaries"]:
        del values["data.canary_kind"]
    # A digest tells whether the weights are the same.
    values["defence.transfer_from"] = bool(values["defence.transfer_from"])
    return values


def identity(experiment: Experiment, digests: Mapping[str, str]) -> str:
    """The run that an experiment on some data is, SHA-256 in hex: equal wherever the same models
    are trained, so that more models, or data in another place, leave it as it is.

    Only fields that differ from their defaults count, so that a field that a later version adds
    leaves it too. Whoever changes a default makes earlier runs that had it other runs.

    Args:
        experiment: what is trained.
        digests: of the data, by name.
    """
    usual, own = _trained_by(Experiment()), _trained_by(experiment)
    changed = {name: value for name, value in own.items() if usual.get(name, "") != value}
    text = json.dumps({"settings": changed, "digests": dict(digests)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
