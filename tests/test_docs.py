"""What the documents show runs as they show it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lira_jax import evaluation, score_set
from lira_jax.attacks import ATTACKS, references
from lira_jax.config import AttackConfig
from lira_jax.report.tables import percent

ROOT = Path(__file__).parents[1]


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    code = python_blocks("python.md")[0]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return code, done, folder


def test_the_audit_in_python_md_is_under_20_lines_and_runs(audit):
    code, done, folder = audit
    assert len(code.strip().splitlines()) < 20 + 1  # a blank line between imports and the rest
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    assert done.returncode == 0, done.stderr
    assert "my model: 400 examples, 1 view, against 16 shadow models" in done.stdout
    assert (folder / "audit" / "report.html").is_file()


def test_the_attack_in_python_md_takes_part_in_everything(tmp_path):
    (tmp_path / "steady.py").write_text(python_blocks("python.md")[1], "utf-8")
    script = """
import numpy as np
from lira_jax.analysis.analyse import analyse
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet
rng = np.random.default_rng(0)
half = rng.random((4, 60)) < 0.5
keep = np.stack([half, ~half], axis=1).reshape(8, 60)
scores = rng.normal(size=(8, 60, 3)) * np.where(keep, 0.5, 2)[..., None]
found = analyse(ScoreSet(scores, keep, 2, "test"), AttackConfig(extra="steady:attack"))
entry = found.metrics["attacks"][-1]
print(entry["name"], entry["auc"], entry["auc_ci"], "steady" in found.curves)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name, auc, *_ = done.stdout.split()
    assert name == "steady"
    assert float(auc) > 0.7
    assert done.stdout.split()[-1] == "True"


def test_results_md_shows_what_its_scores_give():
    # `python docs/results/recompute.py` makes all of the page; here three attacks of Table I.
    held = score_set.read_npz(ROOT / "docs" / "results" / "cifar10_jpeg.npz")
    rule = references.find(held)
    page = (ROOT / "docs" / "results.md").read_text("utf-8")
    for name in ("yeom", "watson", "sablayrolles"):
        scores = ATTACKS[name].attack(held, rule, AttackConfig(), False)[name]
        found = evaluation.summary(evaluation.roc(scores, held.keep))
        found |= evaluation.intervals(scores, held.keep, rule.fold)
        [line] = [line for line in page.splitlines() if f"(`{name}`) |" in line]
        low, high = found["tpr_at_fpr_ci"]["0.001"]
        rate = f"{percent(found['tpr_at_fpr']['0.001'])} ({percent(low)}–{percent(high)})"
        assert f"| {rate} |" in line
