"""The ROC figure: what is drawn, and that it is drawn the same twice."""

from __future__ import annotations

import numpy as np
import pytest

from lira_jax import evaluation, figures
from lira_jax.attacks import TITLES


def curve(size=400, distance=1.0):
    rng = np.random.default_rng(0)
    member = np.arange(size) % 2 == 0
    return evaluation.roc(rng.normal(size=size) + distance * member, member)


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_draws_the_same_bytes_twice(tmp_path, kind, magic):
    first, second = (tmp_path / name for name in "ab")
    for path in (first, second):
        figures.roc_figure({"yeom": curve(), "someone's own": curve()},
                           {"yeom": 0.5, "someone's own": 0.5}, kind, path)  # fmt: skip
    assert first.read_bytes().startswith(magic)
    assert first.read_bytes() == second.read_bytes()


def test_draws_a_curve_that_finds_nothing_and_one_of_few_points(tmp_path):
    member = np.array([True, False, False])
    hopeless = evaluation.roc(np.array([0.0, 1.0, 2.0]), member)
    figures.roc_figure({"yeom": hopeless}, {"yeom": 0.0}, "png", tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 0


def test_drawn_corners_are_the_largest_tpr_at_each_fpr():
    whole = curve()
    left = 1 / whole.false_positives[-1]
    fpr, tpr = figures._corners(whole, left)
    assert fpr[0] == left
    assert fpr[-1] == tpr[-1] == 1
    assert (np.diff(fpr) > 0).all()
    for x, y in zip(fpr, tpr, strict=True):
        assert y == evaluation.tpr_at_fpr(whole, x)


def test_every_attack_has_a_style_of_its_own():
    names = set(TITLES)
    styles = [figures.STYLES[name] for name in names]
    assert len(names) == len(TITLES)
    assert len(set(styles)) == len(names)
