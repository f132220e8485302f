from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lira_jax.data.membership import blocked_masks, member_indices, usable_examples
from lira_jax.errors import InputError


@st.composite
def designs(draw):
    block = draw(st.integers(2, 6))
    kept = draw(st.integers(1, block - 1))
    blocks = draw(st.integers(2, 5))
    return (
        draw(st.integers(0, 2**31)),
        block * blocks,
        block * draw(st.integers(1, 20)),
        kept,
        block,
    )


@given(designs())
def test_every_model_trains_on_the_same_number_of_examples(design):
    _, models, examples, kept, block = design
    keep = blocked_masks(*design)
    assert keep.shape == (models, examples)
    assert (keep.sum(axis=1) == examples * kept // block).all()
    assert member_indices(keep).shape == (models, examples * kept // block)


@given(designs())
def test_every_example_is_in_exactly_m_models_of_each_block(design):
    _, models, examples, kept, block = design
    keep = blocked_masks(*design).reshape(models // block, block, examples)
    assert (keep.sum(axis=1) == kept).all()


@given(designs(), st.integers(1, 4))
def test_more_models_leave_the_first_ones_as_they_are(design, more):
    seed, models, examples, kept, block = design
    larger = blocked_masks(seed, models + more * block, examples, kept, block)
    np.testing.assert_array_equal(larger[:models], blocked_masks(*design))


@given(designs())
def test_counts_over_other_blocks_do_not_depend_on_the_answer(design):
    _, models, _, kept, block = design
    keep = blocked_masks(*design)
    for target in range(models):
        own = slice(target // block * block, target // block * block + block)
        references = np.delete(keep, np.arange(models)[own], axis=0)
        assert (references.sum(axis=0) == kept * (models // block - 1)).all()


def test_different_blocks_and_seeds_cut_the_examples_differently():
    keep = blocked_masks(0, 4, 1000, 1, 2)
    assert 0.4 < (keep[0] == keep[2]).mean() < 0.6
    assert 0.4 < (keep[0] == blocked_masks(1, 4, 1000, 1, 2)[0]).mean() < 0.6


def test_examples_that_make_no_equal_folds_are_left_out():
    assert usable_examples(1797, 2) == 1796
    assert usable_examples(1797, 3) == 1797


@pytest.mark.parametrize(
    ("models", "examples", "kept", "block"),
    [(3, 10, 1, 2), (4, 11, 1, 2), (4, 0, 1, 2), (4, 10, 2, 2), (4, 10, 0, 2)],
)
def test_designs_that_cannot_be_balanced_are_refused(models, examples, kept, block):
    with pytest.raises(InputError):
        blocked_masks(0, models, examples, kept, block)
