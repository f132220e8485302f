"""Stage 3 as a whole: its files, its refusals, and that it needs no JAX."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from lira_jax import workers
from lira_jax.analysis import analyse as analysing
from lira_jax.analysis import budgets, epsilon
from lira_jax.analysis.analyse import analyse
from lira_jax.attacking import Protocol, attack
from lira_jax.attacks import (
    ATTACKS,
    DEFAULT,
    TITLES,
    lira_bayes,
    reference_code,
    references,
    shokri,
)  # fmt: skip
from lira_jax.config import AttackConfig
from lira_jax.errors import InputError
from lira_jax.evaluation import bootstrap, curves
from lira_jax.report import terminal
from lira_jax.score_set import ScoreSet, read_npz
from tests.conftest import sketch

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ["accuracy", "by_models", "by_queries", "histograms_logit", "histograms_loss",
           "histograms_statistics", "privacy_scores", "roc", "roc_gradient_norm", "roc_loss",
           "roc_newer", "roc_newer_offline", "roc_offline", "roc_online",
           "roc_statistics"]  # fmt: skip
TABLES = ["ablation.md", "ablation.tex", "metrics.json", "report.html", "roc.npz", "table.csv",
          "table.md", "table.tex", "vulnerability.csv"]  # fmt: skip
# Few replicates, so that analyses are soon done.
REPLICATES = 40
KEYS = {"1e-05", "0.0001", "0.001", "0.01"}


def synthetic(models=8, examples=300, queries=2, blocked=True):
    rng = np.random.default_rng(0)
    if blocked:
        half = rng.random((models // 2, examples)) < 0.5
        keep = np.stack([half, ~half], axis=1).reshape(models, examples)
    else:
        keep = rng.random((models, examples)).argsort(axis=0) < models // 2
    scores = rng.normal(size=(models, examples, queries)) + 1.5 * keep[..., np.newaxis]
    return ScoreSet(scores.astype(np.float32), keep, None, "file.npz")


def with_everything(canaries=20):
    """Scores with all that any attack needs, and canaries that leak more than the rest."""
    bare = synthetic()
    models, examples, _ = bare.scores.shape
    rng = np.random.default_rng(1)
    canary = np.arange(examples) >= examples - canaries
    scores = bare.scores + 3 * (bare.keep & canary)[..., np.newaxis]
    labels = rng.integers(4, size=examples)
    logits = rng.normal(size=(models, examples, 4))
    others = np.delete(logits, 0, axis=2)
    logits = np.insert(others, 0, 0.0, axis=2)
    own = np.arange(4) == labels[:, np.newaxis]
    logits[:, own] = -np.inf
    logits[:, own] = scores[:, :, 0] + np.logaddexp.reduce(logits, axis=2)
    return dataclasses.replace(
        bare,
        scores=scores.astype(np.float32),
        labels=labels,
        logits=logits.astype(np.float32),
        merlin=rng.integers(11, size=bare.keep.shape) / 10,
        gradient_norm=np.exp(-scores[:, :, 0] / 2),
        canary=canary if canaries else None,
    )


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "REPLICATES", REPLICATES)
        patch.setattr(budgets, "REPLICATES", REPLICATES)
        patch.setattr(epsilon, "DRAWS", 3)
        patch.setattr(shokri, "SEEN", 1)
        yield


def run(score_set, out, protocol: Protocol = "leave-block-out", **config):
    return attack(score_set, AttackConfig(**config), protocol, out, progress=False)


def files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock-attack")
    return sorted(str(path.relative_to(folder)) for path in paths)


def drawn(names):
    return [f"figures/{name}.{kind}" for name in names for kind in ("pdf", "png")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "attack"
    score_set = with_everything()
    with pytest.MonkeyPatch.context() as patch:
        sketch(patch)
        return score_set, run(score_set, out), out


def test_writes_every_file_to_its_schema(written):
    score_set, metrics, out = written
    assert files(out) == sorted([*drawn(FIGURES), *TABLES])
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert (metrics["schema"], metrics["models"], metrics["examples"]) == (2, 8, 280)
    assert (metrics["queries"], metrics["protocol"]) == (2, "leave-block-out")
    assert metrics["rule"] == "leave-block-out, blocks of 2"
    assert metrics["references"] == {"in": 3, "out": 3}
    assert metrics["centre"] == "mean"
    names = [entry["name"] for entry in metrics["attacks"]]
    assert names == list(TITLES)
    assert metrics["not_run"] == []
    for entry in metrics["attacks"]:
        assert set(entry["tpr_at_fpr"]) == set(entry["tpr_at_fpr_ci"]) == KEYS
        assert set(entry["mean_over_targets"]["tpr_at_fpr"]) == KEYS
        assert set(entry["shadow_threshold"]) == set(entry["few_false_positives"]) == KEYS
        low, high = entry["auc_ci"]
        assert low < entry["auc"] < high
        assert entry["over"] == "targets and examples"
        assert entry["targets"] == 8
        assert entry["expected_false_positives"]["0.01"] == pytest.approx(11.2, rel=0.1)

    yeom = next(entry for entry in metrics["attacks"] if entry["name"] == "yeom")
    natural = ~score_set.canary
    area = roc_auc_score(
        score_set.keep[:, natural].ravel(), score_set.scores[:, natural, 0].ravel()
    )
    assert yeom["auc"] == pytest.approx(area)

    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == names
    assert float(rows[-1]["auc"]) == yeom["auc"]
    assert float(rows[-1]["tpr_at_fpr_0.01_hi"]) == yeom["tpr_at_fpr_ci"]["0.01"][1]

    curves = np.load(out / "roc.npz")
    parts = ("fpr", "tpr", "band_fpr", "band_lo", "band_hi")
    assert set(curves) == {f"{name}.{part}" for name in names for part in parts}
    assert (
        curves["yeom.tpr"][np.searchsorted(curves["yeom.fpr"], 0.01, "right") - 1]
        == (yeom["tpr_at_fpr"]["0.01"])
    )


def test_canaries_are_reported_apart_and_listed_with_all_examples(written):
    _, metrics, out = written
    assert metrics["canaries"] == 20
    by_name = {entry["name"]: entry for entry in metrics["attacks"]}
    for entry in metrics["canary_attacks"]:
        if entry["name"].startswith("lira-online"):
            assert entry["auc"] > by_name[entry["name"]]["auc"] + 0.02
    with (out / "vulnerability.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300
    assert {int(row["example"]) for row in rows if row["canary"] == "1"} == set(range(280, 300))
    ranks = [int(row["rank"]) for row in rows if row["canary"] == "1"]
    assert np.mean(ranks) < 100


def test_examples_are_ranked_by_the_attack_that_the_verdict_is_about(written):
    _, metrics, out = written
    with (out / "vulnerability.csv").open() as file:
        attacks = {row["attack"] for row in csv.DictReader(file)}
    assert attacks == {metrics["vulnerability"]["attack"]} == {metrics["verdict"]["attack"]}
    assert f"<code>{attacks.pop()}</code>" in (out / "report.html").read_text()


def test_ranking_verdict_and_bound_are_of_the_default_attack(monkeypatch):
    few = {name: ATTACKS[name] for name in ("lira-bayes", "yeom")}
    monkeypatch.setattr(analysing, "ATTACKS", few)
    score_set = synthetic(examples=200)
    found = analyse(score_set, AttackConfig())
    metrics, exposed = found.metrics, found.vulnerability
    assert metrics["default"] == DEFAULT == exposed.attack == metrics["vulnerability"]["attack"]
    assert metrics["epsilon"]["attack"] == metrics["verdict"]["attack"] == DEFAULT
    assert metrics["epsilon"]["candidates"] == metrics["verdict"]["attacks"] == 1
    scores = lira_bayes.attack(score_set, references.find(score_set), AttackConfig())[DEFAULT]
    inside = scores.sum(axis=0, where=score_set.keep) / score_set.keep.sum(axis=0)
    np.testing.assert_allclose(exposed.mean_score_in, inside, atol=1e-6)


def test_centred_scores_are_what_every_attack_sees_and_leave_the_default_as_it_is(monkeypatch):
    few = {name: ATTACKS[name] for name in ("lira-bayes", "lira", "yeom")}
    monkeypatch.setattr(analysing, "ATTACKS", few)
    # Models that differ far more than membership tells.
    score_set = synthetic(examples=200)
    levels = np.linspace(-20, 20, len(score_set.keep), dtype=np.float32)
    score_set = dataclasses.replace(
        score_set, scores=score_set.scores + levels[:, np.newaxis, np.newaxis], labels=None,
        logits=None,
    )  # fmt: skip
    aucs = [
        {
            e["name"]: e["auc"]
            for e in analyse(score_set, AttackConfig(centred=on)).metrics["attacks"]
        }
        for on in (False, True)
    ]
    assert aucs[1]["lira-online"] > aucs[0]["lira-online"] + 0.1
    assert aucs[1]["lira-bayes"] == pytest.approx(aucs[0]["lira-bayes"], abs=0.01)


def with_an_absurd_model():
    score_set = with_everything(canaries=0)
    score_set.scores[5] = -1e4
    score_set.scores[2, 17, 1] = 1e6
    return score_set


@pytest.mark.usefixtures("sketched")
def test_what_is_absurd_is_bounded_left_out_and_told_everywhere(tmp_path, monkeypatch):
    few = {name: ATTACKS[name] for name in ("lira-bayes", "lira", "watson")}
    monkeypatch.setattr(analysing, "ATTACKS", few)
    metrics = run(with_an_absurd_model(), tmp_path)
    told = metrics["outliers"]
    assert (metrics["models"], told["left_out"]) == (6, [4, 5])
    assert [one["model"] for one in told["models"]] == [5]
    first = told["scores"]["farthest"][0]
    place = (first["model"], first["example"], first["view"], first["score"])
    assert place == (2, 17, 1, 1e6)
    assert len(metrics["accuracy"]) == 8
    on_terminal = " ".join(terminal.summary(metrics, tmp_path).split())
    on_page = " ".join((tmp_path / "report.html").read_text().split())
    for words in ("left out of all attacks, with model 4 of the same block.",
                  "1e+06 of model 2 on example 17, view 1."):  # fmt: skip
        assert words in on_terminal
        assert words in on_page
    rest = synthetic()
    others = [0, 1, 2, 3, 6, 7]
    rest = ScoreSet(rest.scores[others], rest.keep[others], None, "file.npz")
    expected = analyse(rest, AttackConfig()).metrics["attacks"]
    for entry, of_rest in zip(metrics["attacks"], expected, strict=True):
        assert entry["auc"] == pytest.approx(of_rest["auc"], abs=0.01)


@pytest.mark.usefixtures("sketched")
def test_the_reference_protocol_takes_absurd_scores_as_they_are_and_says_so(tmp_path):
    score_set = with_an_absurd_model()
    metrics = run(score_set, tmp_path, "reference-code")
    for name, scores in reference_code.attack(score_set, 0).items():
        entry = next(entry for entry in metrics["attacks"] if entry["name"] == name)
        assert entry["auc"] == pytest.approx(roc_auc_score(score_set.keep[-1], scores[0]))
    told = terminal.summary(metrics, tmp_path)
    assert "model 5 " in told
    assert "This protocol takes them as they are" in told
    assert "left out" not in told


def test_attacks_beside_label_only_ones_keep_the_places_of_models_left_out():
    scores = np.array([[1.0, 2.0], [3.0, 4.0]])
    every = analysing._of_all_models(scores, np.array([True, False, False, True]))
    assert every.tolist() == [[1, 2], [1, 1], [1, 1], [3, 4]]


@pytest.mark.parametrize("canaries", [1, 3])
def test_a_handful_of_canaries_is_no_obstacle(canaries):
    found = analyse(with_everything(canaries), AttackConfig()).metrics
    assert found["canaries"] == canaries
    assert len(found["canary_attacks"]) == len(TITLES)


def test_what_an_earlier_attack_left_and_this_one_has_not_is_removed(tmp_path, sketched):
    del sketched
    run(with_everything(), tmp_path)
    assert (tmp_path / "figures" / "roc_gradient_norm.png").exists()
    run(synthetic(blocked=False), tmp_path, "reference-code")
    assert not (tmp_path / "figures" / "roc_gradient_norm.png").exists()
    assert not (tmp_path / "vulnerability.csv").exists()


def test_the_ablation_has_every_rung_and_agrees_with_the_attacks(written):
    _, metrics, _ = written
    rungs = [(entry["ladder"], entry["step"]) for entry in metrics["ablation"]]
    assert len(rungs) == len(set(rungs)) == 11
    by_name = {entry["name"]: entry for entry in metrics["attacks"]}
    for entry in metrics["ablation"]:
        if entry["name"] in by_name:
            assert entry["tpr_at_fpr"] == by_name[entry["name"]]["tpr_at_fpr"]
            assert entry["auc"] == pytest.approx(by_name[entry["name"]]["auc"], abs=0.02)


def test_budgets_accuracy_and_bound_are_told(written):
    score_set, metrics, _ = written
    assert {entry["queries"] for entry in metrics["by_queries"]} == {1, 2}
    assert {entry["models"] for entry in metrics["by_models"]} == {4, 8}
    right = score_set.logits.argmax(axis=2) == score_set.labels
    natural = ~score_set.canary
    first = metrics["accuracy"][0]
    assert first["member"] == pytest.approx(right[0, natural & score_set.keep[0]].mean())
    assert metrics["epsilon"]["attack"] == metrics["default"]


def test_what_is_missing_is_said_and_the_rest_runs(tmp_path):
    found = analyse(synthetic(), AttackConfig()).metrics
    missing = {entry["name"]: entry["reason"] for entry in found["not_run"]}
    assert set(missing) == {"shokri", "song-mittal", "long", "merlin", "morgan", "gradient-norm",
                            "lira-online-gradient-norm", "base-online", "base-offline",
                            "pmia-class"}  # fmt: skip
    assert "--score.noisy_queries 100" in missing["merlin"]
    assert {entry["name"] for entry in found["attacks"]} == set(TITLES) - set(missing)
    assert found["accuracy"] is None
    assert "Not run: merlin" in terminal.summary(found, tmp_path)


def test_the_progress_bar_is_full_at_the_end_also_where_families_lack_their_input(monkeypatch):
    bars = []

    class Bar(tqdm):
        def close(self):
            bars.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(analysing, "tqdm", lambda **options: Bar(**options | {"disable": False}))
    few = {name: ATTACKS[name] for name in ("lira-bayes", "lira", "song-mittal", "long", "yeom")}
    monkeypatch.setattr(analysing, "ATTACKS", few)
    found = analyse(synthetic(examples=60), AttackConfig()).metrics
    assert len(found["not_run"]) == 2
    assert bars[0] == (5 + 7, 5 + 7)


def test_a_users_attack_that_fails_is_one_line(monkeypatch):
    broken = {
        "raises": (lambda *_: 1 / 0, "ZeroDivisionError"),
        "shape": (lambda *_: {"mine": np.zeros((2, 3))}, r"`mine` has shape \(2, 3\)"),
        "taken": (lambda *_: {"yeom": np.zeros((8, 300))}, "name of another attack"),
        "rung": (lambda *_: {"watson-logit": np.zeros((8, 300))}, "name of another attack"),
        "array": (lambda *_: np.zeros((8, 300)), "return a dict"),
        "writes": (lambda held, *_: held.scores.fill(0), "read-only"),
        "nan": (lambda *_: {"mine": np.full((8, 300), np.nan)}, "not all finite"),
    }
    for name, (function, words) in broken.items():
        monkeypatch.setattr(analysing, "import_function", lambda *_, f=function: f)
        monkeypatch.setattr(analysing, "ATTACKS", {})  # the others' time
        with pytest.raises(InputError, match=words):
            analyse(synthetic(), AttackConfig(extra=f"module:{name}"))


@pytest.mark.usefixtures("sketched")  # test_figures.py draws twice
def test_a_second_run_writes_the_same_bytes_on_however_many_cores(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    (second / "metrics.json").write_text("another run's")
    monkeypatch.setattr(curves, "BLOCK", 64)  # several blocks of the curve, on either
    for out, cores in ((first, 1), (second, 5)):
        monkeypatch.setattr(workers, "cores", lambda cores=cores: cores)
        run(with_everything(), out)
    assert files(first) == files(second)
    for name in files(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_masks_without_blocks_are_left_one_out_and_the_output_says_so(tmp_path):
    config = AttackConfig(centre="median", queries=1)
    metrics = analyse(synthetic(blocked=False), config).metrics
    rule = "leave-one-out with 3 IN and 3 OUT references, because the masks form no blocks"
    assert metrics["rule"] == rule
    assert metrics["centre"] == "median"
    assert metrics["queries"] == 1
    assert rule in terminal.summary(metrics, tmp_path)


@pytest.mark.usefixtures("sketched")
def test_reference_code_protocol(tmp_path):
    score_set = synthetic(blocked=False)
    metrics = run(score_set, tmp_path, "reference-code")
    assert {"metrics.json", "table.csv", "roc.npz", "report.html", "figures/roc.png"} <= set(
        files(tmp_path)
    )
    names = [entry["name"] for entry in metrics["attacks"]]
    assert names == ["lira-online", "lira-online-global", "lira-offline", "lira-offline-global",
                     "global-threshold"]  # fmt: skip
    assert metrics["protocol"] == "reference-code"
    assert metrics["centre"] == "median"
    for entry in metrics["attacks"]:
        assert entry["targets"] == 1
        assert entry["over"] == "examples"
    threshold = metrics["attacks"][-1]
    expected = roc_auc_score(score_set.keep[-1], score_set.scores[-1].mean(axis=-1))
    assert threshold["auc"] == pytest.approx(expected)
    assert "1 target;" in terminal.summary(metrics, tmp_path)


def test_the_table_fits_a_terminal_and_marks_what_rests_on_little(written):
    _, metrics, out = written
    text = terminal.summary(metrics, out)
    assert max(map(len, text.splitlines()[:-1])) <= 110
    for entry in metrics["attacks"]:
        assert entry["name"] in text
    assert f"{100 * metrics['attacks'][0]['auc']:.1f}" in text
    assert metrics["rule"] in text
    assert str(out) in text
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
    if make is no_references:
        if protocol == "leave-block-out":
            pytest.skip("attacked by what needs no references")
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
from matplotlib.figure import Figure
from lira_jax.report import terminal
from lira_jax.analysis import budgets
from lira_jax.attacking import attack
from lira_jax.config import AttackConfig
from lira_jax.evaluation import bootstrap
from lira_jax.score_set import read_npz

# As `sketched`.
Figure.draw_without_rendering = lambda self: None
Figure.savefig = lambda self, file, **_: file.write(b"a figure")
folder = Path(sys.argv[1])
bootstrap.REPLICATES = budgets.REPLICATES = int(sys.argv[2])
metrics = attack(read_npz(folder / "scores.npz"), AttackConfig(), "leave-block-out", folder / "out")
print(terminal.summary(metrics, folder / "out"))
assert not {"jax", "jaxlib", "flax", "optax"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(REPLICATES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal, so no progress bar
    assert {"metrics.json", "report.html", "figures/roc.png"} <= set(files(tmp_path / "out"))
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    expected = analyse(read_npz(tmp_path / "scores.npz"), AttackConfig()).metrics
    assert {**found, "epsilon": None} == {**expected, "epsilon": None}
    assert "not installed" in found["epsilon"]["reason"]
