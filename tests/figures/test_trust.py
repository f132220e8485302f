"""Figures on trust: what a panel shows, and that a figure can be drawn."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from lira_jax.figures import Drawing, Missing, style, trust
from lira_jax.figures.style import figure, style_of
from tests import synthetic_findings
from tests.trust.synthetic import findings

HELD = np.arange(15) >= 6


def panel(accuracy):
    """A calibration whose predictions lie in the upper bins; the last one's spread is not known."""
    middle = (np.arange(15) + 0.5) / 15

    def where(known, values):
        return [value if is_known else None for is_known, value in zip(known, values, strict=True)]

    reliability = {
        "counts": np.where(HELD, 10, 0).tolist(),
        "confidence": where(HELD, middle.tolist()),
        "accuracy": where(HELD, [accuracy] * 15),
        "spread": where(HELD & (np.arange(15) < 14), [0.3] * 15),
    }
    others = {"reliability": reliability, "ece": 0.1234}
    return {"name": "plain", "title": "none", "nonmembers": others}


@pytest.mark.parametrize(
    ("accuracy", "colour", "sign", "corner"),
    [(0.1, style.RED, -1, "top"), (1, style.SKY, 1, "bottom")],
)
def test_a_panel_shades_the_gap_and_leaves_empty_bins_out(accuracy, colour, sign, corner):
    with figure(2) as made:
        axes = made.add_subplot()
        trust._diagram(axes, panel(accuracy))
    gaps = [bar for bar in axes.patches if bar.get_height()]
    assert len(gaps) == HELD.sum()
    assert all(np.sign(bar.get_height()) == sign for bar in gaps)
    assert {bar.get_facecolor()[:3] for bar in gaps} == {to_rgb(colour)}
    # No bar of the spread leaves 0 to 100 %.
    ends = np.concatenate(axes.collections[0].get_segments())[:, 1]
    assert ends.min() >= 0
    assert ends.max() <= 100
    (text,) = axes.texts
    assert text.get_text() == "ECE 12.3 %"
    assert text.get_va() == corner


def test_the_histogram_shows_shares():
    with figure(2) as made:
        axes = made.add_subplot()
        trust._histogram(axes, panel(0.5))
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights, np.where(HELD, 100 / 9, 0))


NAMES = ["trust_inputs", "trust_fpr", "trust_reliability", "trust_trade_off"]


def test_every_figure_is_drawn_a_column_wide():
    drawings = trust.every(findings())
    assert [one.name for one in drawings] == NAMES
    for one in drawings:
        assert isinstance(one, Drawing)
        width, height = Image.open(io.BytesIO(one.png)).size
        assert width == round(3.4 * 300)
        assert height < 1.5 * width
        assert one.title
        assert one.caption


def test_figures_of_what_was_not_predicted_say_how_to_predict_it():
    missing = trust.every(synthetic_findings.usual())
    assert [one.name for one in missing] == NAMES
    assert all(isinstance(one, Missing) for one in missing)
    assert all("python score.py --run DIR --trust" in one.reason for one in missing)


@pytest.mark.usefixtures("sketched")
def test_without_inputs_only_calibration_is_drawn():
    found = findings()
    calibrations = [
        one | {"attacks": [attack | {"inputs": []} for attack in one["attacks"]]}
        for one in found.metrics["trust"]["calibrations"]
    ]
    bare = found.metrics["trust"] | {"kinds": [], "calibrations": calibrations}
    drawings = trust.every(dataclasses.replace(found, metrics=found.metrics | {"trust": bare}))
    assert [isinstance(one, Drawing) for one in drawings] == [False, False, True, True]


def test_rows_of_the_figure_of_inputs_are_members_others_and_each_kind():
    found = findings()
    held, keep = found.trust, found.score_set.keep
    # As with canaries, which come last: more masks and images than predictions that are shown.
    longer = dataclasses.replace(found.score_set, keep=np.pad(keep, ((0, 0), (0, 3))))
    rows = trust._rows(dataclasses.replace(found, score_set=longer), held, found.metrics["trust"])
    assert [row.title for row in rows[2:]] == [f"{k}, in words" for k in held.of_kinds]
    inside, outside = (
        [held.confidence[n, e] for n in range(4) for e in range(60) if keep[n, e] == side]
        for side in (True, False)
    )
    assert sorted(rows[0].confidence) == sorted(inside)
    assert sorted(rows[1].confidence) == sorted(outside)
    for row, side in zip(rows, (True, False), strict=False):
        first = [e for e in range(60) if keep[0, e] == side][:6]
        np.testing.assert_array_equal(row.images, found.images[first])
    assert trust._rows(dataclasses.replace(found, images=None), held, found.metrics["trust"])[
        0
    ].images is None  # fmt: skip


def test_scores_that_round_to_one_stand_in_the_last_bin():
    edges = np.linspace(-3, 10, 14)
    row = trust._Row("", None, np.array([1.0, 1.0, 0.5001, 0.01]), "red")
    shares = trust._shares(row, edges)
    assert shares[-1] == 0.5
    assert shares[3] == 0.25
    assert shares[0] == 0.25
    assert shares.sum() == 1


def test_a_strip_of_images_leaves_the_place_of_missing_ones_white():
    images = np.zeros((2, 16, 16, 3), np.uint8)
    strip = trust._strip(images)
    assert strip.shape == (16, 6 * 17 - 1, 3)
    assert (strip[:, :16] == 0).all()
    assert (strip[:, 16] == 255).all()
    assert (strip[:, 17:33] == 0).all()
    assert (strip[:, 33:] == 255).all()


def test_false_positive_rates_are_drawn_where_the_metrics_have_them(monkeypatch):
    drawn = {}

    def keep(made):
        drawn["axes"] = made.axes[0]
        return {"pdf": b"", "png": b"", "svg": b""}

    monkeypatch.setattr(trust, "rendered", keep)
    trust._false_positives(findings())
    plain = findings().metrics["trust"]["calibrations"][0]
    entry = next(one for one in plain["attacks"] if one["name"] == "max-score")
    colour, _ = style_of("max-score")
    points = [line for line in drawn["axes"].lines if line.get_color() == colour]
    places = [float(line.get_xdata()[0]) for line in points]
    rates = [entry["decision"]["fpr"], *(one["decision"]["fpr"] for one in entry["inputs"])]
    assert places == pytest.approx([100 * rate for rate in rates])
    assert [round(float(line.get_ydata()[0])) for line in points] == [0, 1, 2, 3]
    # lira-online was asked about no input.
    assert len(drawn["axes"].figure.legends[0].get_texts()) == 6


def test_a_point_has_its_intervals_both_ways_and_is_hollow_where_it_rests_on_little():
    with figure(2) as made:
        axes = made.add_subplot()
        trust.crossed(axes, (0.2, 0.1, 0.4), (0.5, 0.3, 0.6), "red", "o", hollow=True)
    across, up = (lines.get_segments()[0] for lines in axes.collections)
    np.testing.assert_allclose(across, [[10, 50], [40, 50]])
    np.testing.assert_allclose(up, [[20, 30], [20, 60]])
    assert axes.lines[0].get_markerfacecolor() == "white"
