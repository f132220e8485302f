"""What the documents show runs as they show it, and so do the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import lira_jax
from lira_jax import evaluation, score_set
from lira_jax.analysis import analyse
from lira_jax.attacks import ATTACKS, references
from lira_jax.config import AttackConfig
from lira_jax.evaluation.wording import percent

ROOT = Path(__file__).parents[1]
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "lira_jax").rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_give_what_they_show(module, capsys):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert (failed, tried > 0) == (0, True), capsys.readouterr().out


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text("utf-8"), re.DOTALL)


@pytest.mark.usefixtures("sketched")
def test_the_audit_in_python_md_is_under_20_lines_and_runs(tmp_path, monkeypatch, capsys):
    code = python_blocks("python.md")[0]
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # networks that have not converged
        exec(code, {})
    out = capsys.readouterr().out
    assert "my model: 400 examples, 1 view, against 16 shadow models" in out
    assert (tmp_path / "audit" / "report.html").is_file()


def test_the_attack_in_python_md_takes_part_in_everything(tmp_path, monkeypatch):
    (tmp_path / "steady.py").write_text(python_blocks("python.md")[1], "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    few = {name: ATTACKS[name] for name in ("lira-bayes", "lira")}
    monkeypatch.setattr(analyse, "ATTACKS", few)
    random = np.random.default_rng(0)
    half = random.random((4, 60)) < 0.5
    keep = np.stack([half, ~half], axis=1).reshape(8, 60)
    scores = random.normal(size=(8, 60, 3)) * np.where(keep, 0.5, 2)[..., np.newaxis]
    findings = lira_jax.analyse(
        lira_jax.ScoreSet(scores, keep, 2, "test"), AttackConfig(extra="steady:attack")
    )
    entry = findings.metrics["attacks"][-1]
    assert entry["name"] == "steady"
    assert entry["auc_ci"][0] > 0.7
    assert "steady" in findings.curves


def test_results_md_shows_what_its_scores_give():
    # `python docs/results/recompute.py` makes all of the page; here three attacks of Table I.
    scores = score_set.read_npz(ROOT / "docs" / "results" / "cifar10_jpeg.npz")
    rule = references.find(scores)
    page = (ROOT / "docs" / "results.md").read_text("utf-8")
    for name in ("yeom", "watson", "sablayrolles"):
        attack = ATTACKS[name].attack(scores, rule, AttackConfig(), False)[name]
        rates = evaluation.summary(evaluation.roc(attack, scores.keep))
        rates |= evaluation.intervals(attack, scores.keep, rule.fold)
        [line] = [line for line in page.splitlines() if f"(`{name}`) |" in line]
        low, high = rates["tpr_at_fpr_ci"]["0.001"]
        rate = f"{percent(rates['tpr_at_fpr']['0.001'])} ({percent(low)}–{percent(high)})"
        assert f"| {rate} |" in line


def test_the_places_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    places = set(re.findall(r"`([\w/]+/[\w/]*(?:\.py|\.md)?)`", text))
    assert len(places) > 30
    assert not [place for place in places if not (ROOT / place).exists()]
