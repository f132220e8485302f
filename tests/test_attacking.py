"""Stage 3 as a whole: its files, its refusals, and that it needs no JAX."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lira_jax.attacking import Protocol, attack, format_table
from lira_jax.attacks import TITLES
from lira_jax.config import AttackConfig
from lira_jax.errors import InputError
from lira_jax.score_set import ScoreSet, read_npz

ROOT = Path(__file__).resolve().parents[1]
FILES = ["figures/roc.pdf", "figures/roc.png", "metrics.json", "roc.npz", "table.csv"]
LIRA = [f"lira-{kind}{variance}" for kind in ("online", "offline")
        for variance in ("", "-global", "-pooled")]  # fmt: skip


def synthetic(models=8, examples=300, queries=2, blocked=True):
    rng = np.random.default_rng(0)
    if blocked:
        half = rng.random((models // 2, examples)) < 0.5
        keep = np.stack([half, ~half], axis=1).reshape(models, examples)
    else:
        keep = rng.random((models, examples)).argsort(axis=0) < models // 2
    scores = rng.normal(size=(models, examples, queries)) + 1.5 * keep[..., np.newaxis]
    return ScoreSet(scores.astype(np.float32), keep, None, "file.npz")


def run(score_set, out, protocol: Protocol = "leave-block-out", **config):
    return attack(score_set, AttackConfig(**config), protocol, out, progress=False)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_writes_every_file_to_its_schema(tmp_path):
    score_set = synthetic()
    metrics = run(score_set, tmp_path / "attack")
    assert files(tmp_path / "attack") == FILES
    assert json.loads((tmp_path / "attack/metrics.json").read_text()) == metrics
    assert (metrics["schema"], metrics["models"], metrics["examples"]) == (1, 8, 300)
    assert (metrics["queries"], metrics["protocol"]) == (2, "leave-block-out")
    assert metrics["rule"] == "leave-block-out, blocks of 2"
    assert metrics["references"] == {"in": 3, "out": 3}
    assert metrics["centre"] == "mean"
    names = [entry["name"] for entry in metrics["attacks"]]
    assert names == list(TITLES)
    keys = {"1e-05", "0.0001", "0.001", "0.01"}
    for entry in metrics["attacks"]:
        assert set(entry["tpr_at_fpr"]) == set(entry["tpr_at_fpr_ci"]) == keys
        assert set(entry["mean_over_targets"]["tpr_at_fpr"]) == keys
        low, high = entry["auc_ci"]
        assert low < entry["auc"] < high
        assert entry["targets"] == 8
        assert entry["expected_false_positives"]["0.01"] == pytest.approx(12, rel=0.1)

    loss = next(entry for entry in metrics["attacks"] if entry["name"] == "yeom")
    area = roc_auc_score(score_set.keep.ravel(), score_set.scores[:, :, 0].ravel())
    assert loss["auc"] == pytest.approx(area)

    with (tmp_path / "attack/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == names
    assert float(rows[-1]["auc"]) == loss["auc"]
    assert float(rows[-1]["tpr_at_fpr_0.01_hi"]) == loss["tpr_at_fpr_ci"]["0.01"][1]

    curves = np.load(tmp_path / "attack/roc.npz")
    assert set(curves) == {f"{name}.{rate}" for name in names for rate in ("fpr", "tpr")}
    assert (
        curves["yeom.tpr"][np.searchsorted(curves["yeom.fpr"], 0.01, "right") - 1]
        == (loss["tpr_at_fpr"]["0.01"])
    )


def test_a_second_run_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        run(synthetic(), tmp_path / name)
    run(synthetic(), tmp_path / "b")  # over its own files
    assert files(tmp_path / "b") == FILES
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_masks_without_blocks_are_left_one_out_and_the_output_says_so(tmp_path):
    metrics = run(synthetic(blocked=False), tmp_path, centre="median", queries=1)
    rule = "leave-one-out with 3 IN and 3 OUT references, because the masks form no blocks"
    assert metrics["rule"] == rule
    assert metrics["centre"] == "median"
    assert metrics["queries"] == 1
    assert rule in format_table(metrics, tmp_path)


def test_reference_code_protocol(tmp_path):
    score_set = synthetic(blocked=False)
    metrics = run(score_set, tmp_path, "reference-code")
    assert files(tmp_path) == FILES
    names = [entry["name"] for entry in metrics["attacks"]]
    assert names == ["lira-online", "lira-online-global", "lira-offline", "lira-offline-global",
                     "global-threshold"]  # fmt: skip
    assert metrics["protocol"] == "reference-code"
    assert metrics["centre"] == "median"
    for entry in metrics["attacks"]:
        assert entry["targets"] == 1
        assert entry["auc_ci"] is None
    threshold = metrics["attacks"][-1]
    expected = roc_auc_score(score_set.keep[-1], score_set.scores[-1].mean(axis=-1))
    assert threshold["auc"] == pytest.approx(expected)
    assert "1 target;" in format_table(metrics, tmp_path)


@pytest.mark.parametrize("protocol", ["leave-block-out", "reference-code"])
def test_the_table_fits_a_terminal_and_marks_what_rests_on_little(tmp_path, protocol):
    metrics = run(synthetic(), tmp_path, protocol)
    text = format_table(metrics, tmp_path)
    assert max(map(len, text.splitlines()[:-1])) <= 110
    for entry in metrics["attacks"]:
        assert entry["name"] in text
    assert f"{100 * metrics['attacks'][0]['auc']:.1f}" in text
    assert metrics["rule"] in text
    assert str(tmp_path) in text
    assert "* fewer than 10 expected false positives" in text


def nan_score():
    score_set = synthetic()
    score_set.scores[3, 7, 1] = np.nan
    return score_set


def all_members():
    score_set = synthetic()
    score_set.keep[3] = True
    return score_set


def no_references():
    score_set = synthetic(blocked=False)
    score_set.keep[:, 5] = np.arange(8) < 1
    return score_set


def with_block(block, **changes):
    score_set = synthetic(**changes)
    return ScoreSet(score_set.scores, score_set.keep, block, score_set.source)


@pytest.mark.parametrize("protocol", ["leave-block-out", "reference-code"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nan_score, "model 3, example 7, view 1"),
        (all_members, "every example is a member of model 3"),
        (no_references, "example 5"),
    ],
)
def test_bad_input_is_one_line_and_leaves_every_file_as_it_was(tmp_path, protocol, make, words):
    score_set = make()
    if make is no_references and protocol == "reference-code":
        score_set.keep[0, 5] = False
    with pytest.raises(InputError) as caught:
        run(score_set, tmp_path / "new", protocol)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: with_block(3), "8 models do not form blocks of 3"),
        (lambda: with_block(8), "fewer than two blocks"),
        (lambda: with_block(2, blocked=False), "models of block 0"),
    ],
)
def test_blocks_that_the_masks_do_not_form_are_refused(tmp_path, make, words):
    with pytest.raises(InputError, match=words):
        run(make(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_more_queries_than_views_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"attack.queries = 3: file.npz holds 2 views"):
        run(synthetic(), tmp_path / "new", queries=3)
    assert not (tmp_path / "new").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="taken: cannot be made a folder"):
        run(synthetic(), tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_runs_where_no_jax_is_installed(tmp_path):
    score_set = synthetic()
    np.savez(tmp_path / "scores.npz", scores=score_set.scores, keep=score_set.keep)
    script = """
import sys
from pathlib import Path

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"jax", "jaxlib", "flax", "optax"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from lira_jax.attacking import attack, format_table
from lira_jax.config import AttackConfig
from lira_jax.score_set import read_npz

folder = Path(sys.argv[1])
metrics = attack(read_npz(folder / "scores.npz"), AttackConfig(), "leave-block-out", folder / "out")
print(format_table(metrics, folder / "out"))
assert not {"jax", "jaxlib", "flax", "optax"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal, so no progress bar
    assert files(tmp_path / "out") == FILES
    expected = run(read_npz(tmp_path / "scores.npz"), tmp_path / "here")
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == expected
