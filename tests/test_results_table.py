"""The table of every attack in docs/results.md, on attacks whose order is known."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from lira_jax.attacks import Family
from lira_jax.score_set import ScoreSet

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = 150


@pytest.fixture
def every_attack(monkeypatch):
    """The script, with attacks that add more or less of the answer to the same scores."""
    monkeypatch.setattr(sys, "path", [str(DOCS / "results"), *sys.path])
    script = importlib.import_module("every_attack")

    def attack(score_set, rule, config, progress):
        del rule, config, progress
        noise = score_set.scores[..., 0]
        gains = {"usual": 1, "usual-offline": 1, "strong": 3, "weak": 0.2, "twin-offline": 1}
        return {name: noise + gain * score_set.keep for name, gain in gains.items()}

    needing = Family(attack, {"other": "Other"}, ("logits",))
    monkeypatch.setattr(script, "ATTACKS", {"all": Family(attack, {}), "other": needing})
    monkeypatch.setattr(script, "DEFAULT", "usual")
    monkeypatch.setattr(script, "OFFLINE", "usual-offline")
    return script


def masks_in_blocks(models: int, block: int) -> ScoreSet:
    rng = np.random.default_rng(0)
    order = rng.permuted(np.tile(np.arange(block), (EXAMPLES, models // block, 1)), axis=2)
    keep = (order == 0).reshape(EXAMPLES, models).T
    return ScoreSet(rng.normal(size=(*keep.shape, 1)), keep, block, "test")


@pytest.fixture
def judged(every_attack):
    run = every_attack.Run("small", "A small run", "small.toml", "images/")
    score_set = masks_in_blocks(16, 2)
    found = list(every_attack.judge(run, score_set))
    return every_attack.section(found, {"small": every_attack.setting(run, score_set)})


def row(text: str, name: str) -> list[str]:
    [line] = re.findall(rf"^\| `{name}` \| (.*) \|$", text, re.MULTILINE)
    return line.split(" | ")


def test_cells_say_what_is_surely_behind_the_default_surely_ahead_or_level(judged):
    assert "| attack | 4 models | 8 models | 16 models |" in judged
    for name, mark in (("strong", r"\+"), ("weak", "−"), ("twin-offline", "")):
        for cell in row(judged, name):
            assert re.fullmatch(rf"[\d.]+{mark} / [\d.]+{mark}", cell)
    assert all(re.fullmatch(r"\*\*[\d.]+ / [\d.]+\*\*", cell) for cell in row(judged, "usual"))


def test_what_the_default_is_surely_behind_is_said_in_a_line_of_its_own(judged):
    [online, _] = re.findall(r"^TPR .*`usual` is surely ahead.*$", judged, re.MULTILINE)
    assert "of 12 comparisons, `usual` is surely ahead in 3, level in 6, and" in online
    assert "**surely behind in 3**: `strong` with 4 models −" in online
    [offline] = re.findall(r"^AUC.*`usual-offline` is.*$", judged, re.MULTILINE)
    assert offline.endswith("surely ahead in 0, level in 3, and surely behind in none.")


def test_the_summary_names_the_best_other_attack_and_the_difference(judged):
    summary = re.findall(r"^\| (?:A small run)? \| (\d+) \|.*\| `strong` [\d.]+ \| (.*) \|$",
                         judged, re.MULTILINE)  # fmt: skip
    assert [models for models, _ in summary] == ["4", "8", "16"]
    for _, difference in summary:
        assert re.fullmatch(r"−[\d.]+ \(−[\d.]+ to −[\d.]+\) \*\*behind\*\*", difference)


def test_where_there_are_several_runs_the_line_says_on_which(every_attack):
    runs = [every_attack.Run(name, f"Run {name}") for name in "ab"]
    score_set = masks_in_blocks(4, 2)
    found = [one for run in runs for one in every_attack.judge(run, score_set)]
    text = every_attack.section(found, {"a": "", "b": ""})
    assert "`strong` on Run a with 4 models" in text
    assert "`strong` on Run b with 4 models" in text


def test_a_run_says_how_it_was_made_and_what_could_not_be_run(judged):
    assert "16 models, 150 examples, 1 view," in judged
    assert "Without `logits` there are no `other`." in judged
    assert "python train.py configs/small.toml --run runs/small --data.path images/" in judged


def test_each_group_of_models_is_attacked_as_a_run_of_its_own(every_attack, monkeypatch):
    score_set = masks_in_blocks(8, 2)
    seen = []

    def attack(group, rule, config, progress):
        seen.append((group.keep, rule.count_in + rule.count_out))
        return {"usual": group.scores[..., 0]}

    monkeypatch.setattr(every_attack, "ATTACKS", {"all": Family(attack, {})})
    assert [one.models for one in every_attack.judge(every_attack.RUNS[0], score_set)] == [4, 8]
    expected = [(score_set.keep[:4], 2), (score_set.keep[4:], 2), (score_set.keep, 6)]
    for (keep, count), (own, references) in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(keep, own)
        assert count == references


def test_the_default_without_in_references_is_not_its_best_other_attack(every_attack, monkeypatch):
    monkeypatch.setattr(every_attack, "OFFLINE", "strong")
    [judged] = every_attack.judge(every_attack.RUNS[0], masks_in_blocks(4, 2))
    found = {
        figure.title: [every_attack.differences(judged, figure, "usual")]
        for figure in (every_attack.TPR, every_attack.AUC)
    }
    assert "`strong`" in every_attack._standing(found, "usual")
    assert "`strong`" not in every_attack._summary([judged], found, "usual")


def test_numbers_of_models_that_leave_no_references_are_left_out(every_attack):
    found = every_attack.judge(every_attack.RUNS[0], masks_in_blocks(16, 4))
    assert [one.models for one in found] == [8, 16]


def test_filling_a_page_leaves_what_other_scripts_wrote(every_attack, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- one -->\nold\n<!-- end -->\n<!-- two -->\nkept\n<!-- end -->\n", "utf-8")
    every_attack.fill(page, {"one": "new"})
    text = page.read_text("utf-8")
    assert "old" not in text
    assert "<!-- one -->\n\nnew\n\n<!-- end -->\n<!-- two -->\nkept\n<!-- end -->" in text
    with pytest.raises(ValueError, match="three"):
        every_attack.fill(page, {"three": ""})


def test_every_run_that_may_be_kept_has_its_configuration(every_attack):
    for run in every_attack.RUNS:
        assert not run.config or (DOCS.parent / "configs" / run.config).is_file()
    assert (DOCS / "results" / "cifar10_jpeg.npz").is_file()
