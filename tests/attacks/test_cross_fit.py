"""Cross-fitting, and what every attack that uses it must hold: its null, its invariances."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lira_jax import evaluation
from lira_jax.attacks import cross_fit, draws, references
from tests.attacks.shadow_outputs import MASKS, blocked_masks, halved_masks, outputs, run

FAMILIES = ["shokri", "jayaraman", "song-mittal", "long", "quantile-regression"]


def reordered(score_set, models, examples):
    """The same scores, their models and examples in another order."""
    both = np.ix_(models, examples)
    return dataclasses.replace(
        score_set,
        scores=score_set.scores[both],
        keep=score_set.keep[both],
        labels=score_set.labels[examples],
        logits=score_set.logits[both],
        merlin=score_set.merlin[both],
    )


@pytest.mark.parametrize("groups", [2, 3, 99])
@pytest.mark.parametrize("masks", MASKS)
def test_every_pair_is_attacked_once_and_folds_stay_whole(masks, groups):
    rng = np.random.default_rng(0)
    score_set = outputs(rng, masks(rng, 8, 51))
    rule = references.find(score_set)
    splits = cross_fit.splits(score_set, rule, groups)
    times = sum(np.outer(split.targets, split.examples).astype(int) for split in splits)
    assert (times == 1).all()
    assert len(splits) == 2 * min(groups, 8 // rule.fold)
    for split in splits:
        by_fold = split.targets.reshape(-1, rule.fold)
        assert (by_fold == by_fold[:, :1]).all()
        per_class = np.bincount(score_set.labels[split.examples], minlength=3)
        assert (abs(2 * per_class - np.bincount(score_set.labels)) <= 1).all()


def test_noise_is_uniform_and_goes_with_model_and_example():
    rng = np.random.default_rng(1)
    score_set = outputs(rng, halved_masks(rng, 20, 500))
    noise = draws.noise(score_set)
    assert len(np.unique(noise)) == noise.size
    share = noise / 2.0**64
    assert share.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / noise.size))
    assert share.std() == pytest.approx(np.sqrt(1 / 12), abs=0.01)
    assert abs(np.corrcoef(share.ravel(), score_set.scores.ravel())[0, 1]) < 0.04
    models, examples = rng.permutation(20), rng.permutation(500)
    moved = draws.noise(reordered(score_set, models, examples))
    np.testing.assert_array_equal(moved, noise[np.ix_(models, examples)])


def test_keys_are_kept_only_of_scores_that_cannot_change():
    rng = np.random.default_rng(1)
    keep = halved_masks(rng, 6, 40)
    score_set, other = outputs(rng, keep), outputs(rng, keep)
    score_set.scores.flags.writeable = False
    first = draws.keys(score_set)
    assert draws.keys(score_set)[0] is first[0]
    changed = draws.keys(other)
    assert (changed[0] != first[0]).any()
    other.scores[:, :, 0] = score_set.scores[:, :, 0]
    for again, expected in zip(draws.keys(other), first, strict=True):
        np.testing.assert_array_equal(again, expected)


def test_balanced_pairs_are_as_many_members_as_not():
    rng = np.random.default_rng(2)
    keep = halved_masks(rng, 6, 40)
    noise = draws.noise(outputs(rng, keep))
    models, examples = np.array([1, 4, 5]), np.arange(7, 30)
    for most in (5, 1000):
        model, example = cross_fit.balanced_pairs(noise, keep, models, examples, most)
        member = keep[model, example]
        fewer = min(keep[np.ix_(models, examples)].sum(), (~keep[np.ix_(models, examples)]).sum())
        assert member.sum() == (~member).sum() == min(most, fewer)
        assert set(model) <= set(models)
        assert set(example) <= set(examples)
        assert len(set(zip(model, example, strict=True))) == len(model)
    nobody, _ = cross_fit.balanced_pairs(noise, keep, models, examples[:0], 5)
    assert nobody.size == 0


@pytest.mark.parametrize("masks", MASKS)
def test_without_leakage_auc_is_one_half_where_long_guesses(masks):
    # Over all examples, and of the other families: test_every_attack.py.
    rng = np.random.default_rng(8)
    areas = []
    for _ in range(12):
        score_set = outputs(rng, masks(rng, 8, 250), classes=2, level=0.7)
        values = run(score_set, "long")["long"]
        guessed = values > values.min()
        areas.append(evaluation.auc(evaluation.roc(values[guessed], score_set.keep[guessed])))
    error = np.std(areas, ddof=1) / np.sqrt(len(areas))
    assert abs(np.mean(areas) - 0.5) < 4.5 * error
    assert error < 0.03


@pytest.mark.usefixtures("small_fits")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_input_gives_the_same_bytes(family):
    rng = np.random.default_rng(5)
    score_set = outputs(rng, halved_masks(rng, 8, 150), shift=1.0)
    first, second = run(score_set, family), run(score_set, family)
    for name, values in first.items():
        assert values.dtype == np.float64
        assert values.tobytes() == second[name].tobytes()


@pytest.mark.usefixtures("small_fits")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_targets_mask_does_not_change_how_it_is_attacked(family):
    # Swap who of a block trained on what: fits, references and windows are of other models.
    rng = np.random.default_rng(6)
    score_set = outputs(rng, blocked_masks(rng, 8, 150), shift=1.0)
    keep = score_set.keep.copy()
    keep[:2] = ~keep[:2]
    swapped = run(dataclasses.replace(score_set, keep=keep), family)
    for name, values in run(score_set, family).items():
        ranks, again = (one[:2].ravel().argsort(kind="stable") for one in (values, swapped[name]))
        np.testing.assert_array_equal(ranks, again, err_msg=name)


@pytest.mark.usefixtures("small_fits")
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_that_are_all_equal_give_finite_scores_and_no_advantage(family):
    rng = np.random.default_rng(7)
    keep = blocked_masks(rng, 8, 60)
    same = outputs(rng, keep)
    same = dataclasses.replace(
        same,
        scores=np.zeros_like(same.scores),
        logits=np.zeros_like(same.logits),
        labels=np.zeros_like(same.labels),
        merlin=np.full_like(same.merlin, 0.3),
    )
    for name, values in run(same, family).items():
        assert np.isfinite(values).all(), name
        assert evaluation.auc(evaluation.roc(values, keep)) == pytest.approx(0.5), name


@pytest.mark.usefixtures("small_fits")
@pytest.mark.parametrize("family", FAMILIES)
def test_two_blocks_of_two_models_and_outputs_far_out_stay_finite(family):
    rng = np.random.default_rng(9)
    score_set = outputs(rng, blocked_masks(rng, 4, 40), classes=5)
    wide = dataclasses.replace(
        score_set,
        scores=(300 * score_set.scores).astype(np.float16),
        logits=(300 * score_set.logits).astype(np.float16),
    )
    for name, values in run(wide, family).items():
        assert np.isfinite(values).all(), name
