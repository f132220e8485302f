"""What makes a run the one that it is."""

from __future__ import annotations

import dataclasses

import pytest

from lira_jax.config import Experiment, flatten
from lira_jax.run.continuing import FREE_TO_CHANGE, differences, identity

DIGESTS = {"data_digest": "a" * 64}
# A value of each field that is not its default, where its type does not tell one.
OTHER = {
    "network.arch": "convnet", "network.norm": "group", "train.keep": "1/4", "train.optimizer":
    "adam", "train.schedule": "one_cycle", "train.dtype": "bfloat16", "data.leave_out": ("1",),
    "train.conv_gradients": "vmap", "defence.transfer_from": "runs/x", "defence.transfer_tune":
    "last", "score.views": 2, "attack.centre": "median",
}  # fmt: skip


def changed(name, value):
    section, _, key = name.rpartition(".")
    experiment = Experiment(data=dataclasses.replace(Experiment().data, canaries=2))
    if not section:
        return dataclasses.replace(experiment, **{key: value})
    inner = dataclasses.replace(getattr(experiment, section), **{key: value})
    return dataclasses.replace(experiment, **{section: inner})


def other_value(name, value):
    if name in OTHER:
        return OTHER[name]
    if name == "data.canary_kind":
        return "noise"
    if isinstance(value, bool):
        return not value
    return f"{value}x" if isinstance(value, str) else value + 1


SAME = changed("seed", 0)
FIELDS = [
    name
    for name in flatten(Experiment())
    if not name.startswith(("score.", "label_only.", "trust.", "attack."))
]


@pytest.mark.parametrize("name", FIELDS)
def test_a_run_is_another_exactly_where_a_field_changes_what_is_trained(name):
    other = changed(name, other_value(name, flatten(SAME)[name]))
    assert other != SAME
    is_other = identity(other, DIGESTS) != identity(SAME, DIGESTS)
    assert is_other == bool(differences(SAME, other)) == (name not in FREE_TO_CHANGE)


@pytest.mark.parametrize("name", ["score.views", "attack.centre"])
def test_settings_of_later_stages_leave_a_run_as_it_is(name):
    assert identity(changed(name, OTHER[name]), DIGESTS) == identity(SAME, DIGESTS)


def test_other_data_make_another_run():
    assert identity(SAME, {"data_digest": "b" * 64}) != identity(SAME, DIGESTS)


def test_the_same_fraction_is_the_same_run():
    same = changed("train.keep", "2/4")
    assert identity(same, DIGESTS) == identity(SAME, DIGESTS)


def test_the_place_of_weights_to_begin_from_counts_only_by_their_digest():
    one, two = (changed("defence.transfer_from", place) for place in ("runs/a", "runs/b"))
    assert identity(one, DIGESTS) == identity(two, DIGESTS)


def test_an_identity_is_for_good():
    """Files of earlier runs would be refused by a version that computed another."""
    assert identity(Experiment(), {}) == (
        "ef92c10267bd00022ca023c6a843baca0684f6279a8d7c54058fdb960f715dcb"
    )
