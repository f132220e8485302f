"""The commands as people use and misuse them.

All but what needs a process of its own runs in this one, on a linear network that compiles fast.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import jax
import numpy as np
import pytest

import lira_jax
from lira_jax import config, config_file, inference, software, training
from lira_jax.analysis import analyse
from lira_jax.attacks import Family
from lira_jax.candidates import build_network, candidates
from lira_jax.commands import attack, main, score, train
from lira_jax.config import Experiment
from lira_jax.data import datasets
from lira_jax.progress import Progress
from lira_jax.run import checkpoints, parts, run_dir, score_files
from lira_jax.storage import as_path
from tests.commands.conftest import STEPS
from tests.conftest import files_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def experiment_of(call, monkeypatch):
    """The experiment that train.py would train."""

    def experiment_of(*arguments):
        got = []
        monkeypatch.setattr(training, "train", lambda *given, **more: got.append(given))
        assert call(train, *arguments) == (0, "", "")
        return got[0]

    return experiment_of


def weights(run):
    """Every model's variables, from whatever groups they were saved in."""
    experiment = run_dir.read_config(run)
    network = build_network(experiment, candidates(experiment))
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    found = {}
    for group in checkpoints.saved_groups(run):
        assert group.step == STEPS
        size = group.size
        like = jax.tree.map(lambda x, size=size: np.empty((size, *x.shape), x.dtype), shapes)
        tree = checkpoints.restore(run, group, like)
        for row in range(size):
            found[group.first + row] = b"".join(x[row].tobytes() for x in jax.tree.leaves(tree))
    return found


def checkpoint(run, first, step):
    """The file of the group of two models that begins with this one."""
    return run / "checkpoints" / f"models_{first:05d}-{first + 1:05d}_step_{step}.npz"


def flip(path):
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def in_parts(run, models):
    """Take back that all is scored: leave some models, each in a part of its own."""
    phi, logits = (np.load(run / name) for name in ("scores.npy", "logits.npy"))
    for name in ("scores.npy", "logits.npy"):
        (run / name).unlink()
    for model in models:
        product = bound(run, score_files.phi(phi.shape[2], logits.shape[2]))
        parts.write_part(run, product, model, phi[[model]], logits[[model]])


def bound(run, product):
    """The product as score.py makes it."""
    binding = {"run": run_dir.identity(run)}
    return dataclasses.replace(product, binding=binding, made_with=software.in_words())


def assert_same_run(run, other):
    """Bitwise: masks, labels, weights, scores, logits; and what the log says of each model."""
    for name in (run_dir.KEEP, run_dir.LABELS, score_files.SCORES, score_files.LOGITS):
        assert (run / name).read_bytes() == (other / name).read_bytes()
    assert weights(run) == weights(other)
    logs = [
        {
            (line["models"][0] + row, line["epoch"]): [
                line[name][row] for name in ("loss", "member_accuracy", "nonmember_accuracy")
            ]
            for line in run_dir.read_log(folder)
            for row in range(len(line["loss"]))
        }
        for folder in (run, other)
    ]
    assert logs[0] == logs[1]


# Words on the command line.


def test_a_config_is_found_wherever_it_stands(experiment_of, toml):
    for words in (["--seed", 1, toml, "--run", "x"], ["--run=x", "--repair", "--seed=1", toml]):
        experiment, run = experiment_of(*words)
        assert experiment == dataclasses.replace(config_file.load(toml), seed=1)
        assert run == Path("x")
    assert experiment_of("--data.path", "a.toml", "--run", "b.toml", toml)[1] == Path("b.toml")


def test_help_explains_every_field_with_its_default_under_its_name_in_toml(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = call(train, "--help")
    assert (code, err) == (0, "")
    text = " ".join(re.sub(r"[│╭╰╮╯─]", " ", out).split())
    entries = dict(re.findall(r" --([a-z0-9_.]+) (.*?)(?= --[a-z]|$)", text))
    for name, default in config.flatten(Experiment()).items():
        shown = shlex.quote(default) if isinstance(default, str) else default
        explained, found, _ = entries[name].partition(f"(default: {shown})")
        assert found, (name, entries[name])
        assert len(explained.split()) > 4
    assert "(required)" in entries["run"]
    assert "CONFIG.toml" in text


def test_help_shows_the_values_of_a_config_as_defaults(call, toml):
    _, out, _ = call(train, toml, "--help")
    assert "(default: 120)" in out


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (score, ["--run", "--score.views {1,2,18,162}", "--score.batch_size"]),
        (
            attack,
            ["--run", "--scores", "--out", "--protocol", "--attack.queries", "--attack.centre"],
        ),
    ],
)
def test_the_other_scripts_explain_their_flags(call, script, flags):
    code, out, err = call(script, "--help")
    assert (code, err) == (0, "")
    assert all(flag in out for flag in flags)


def test_every_field_can_be_overridden(experiment_of, toml):
    base = config_file.load(toml)
    other = {
        "network.arch": "resnet", "train.models": 6, "train.keep": "1/4", "train.epochs": 9,
        "train.optimizer": "adam", "train.schedule": "constant", "train.dtype": "bfloat16",
            "train.conv_gradients": "vmap",
        "train.ema": 0.0, "train.momentum": 0.5, "train.label_smoothing": 0.5,
        "score.views": 162, "score.noisy_queries": 0,  # refused beside MemGuard
        "attack.centre": "median", "attack.extra": "a.b:c", "attack.fpr": 0.25,
        "attack.calibrate": "per-example",
        "data.canary_kind": "noise",
        "data.name": "some name", "data.path": "a b/ü.npz", "network.norm": "group",
        "defence.dropout": 0.5, "defence.transfer_from": "a run", "defence.transfer_tune": "last",
        "defence.dp_delta": 1e-6, "defence.adversarial": 0.0,  # refused beside DP-SGD
        "label_only.sources": "1", "label_only.targets": "2, 3", "label_only.rotations": "5",
        "label_only.translations": "3", "label_only.noise": "0.5", "label_only.flips": "0.1",
            "data.leave_out": "ship", "trust.inputs": "uniform", "trust.data_sets": "a=b",
            "trust.same_classes": "a", "trust.generated": "g", "attack.temperatures": "2",
    }  # fmt: skip
    other["train.keep"] = "1/3"
    words = []
    for name, value in config.flatten(base).items():
        if name not in other:
            other[name] = not value if isinstance(value, bool) else value + 1
        words += [f"--{name}", str(other[name])]
    experiment, run = experiment_of(*words, toml, "--run", "some run")
    assert config.flatten(experiment) == other
    assert run == Path("some run")


def test_a_switch_needs_no_value(call, toml, monkeypatch):
    given = []
    monkeypatch.setattr(training, "train", lambda *_, **more: given.append(more["repair"]))
    for words in ([], ["--repair", "True"], ["--repair"], ["--repair=True"], ["--repair", "False"]):
        assert call(train, toml, "--run", "r", *words).code == 0
    assert given == [False, True, True, True, False]
    code, _, err = call(train, toml, "--run", "r", "--repair", "yes")
    assert code == 2
    assert "give True or False, or nothing for True" in err


def test_one_override_changes_one_field(experiment_of, toml):
    base = config_file.load(toml)
    wanted = dataclasses.replace(base, train=dataclasses.replace(base.train, models=16))
    assert experiment_of(toml, "--run", "r", "--train.models", "16") == (wanted, Path("r"))
    assert experiment_of("--train.models=16", "--run=r", toml) == (wanted, Path("r"))


def test_the_last_of_repeated_flags_counts(experiment_of, run, toml):
    experiment, where = experiment_of("--run", toml.parent, "--run", run, "--seed", 1, "--seed", 3)
    assert (experiment, where) == (config_file.load(toml), run)


def test_a_run_goes_on_without_naming_its_config(call, run, made):
    code, out, err = call(train, "--run", f"{run}/")
    assert (code, out, err) == (0, f"{run}: all 4 models are trained\n", "")
    assert_same_run(run, made)


def test_a_config_needs_no_suffix_but_must_exist(refused, experiment_of, run, toml):
    message = refused(train, "digits", "--run", run)
    assert message == "digits: no such file; configs/ holds examples"
    other = toml.with_name("experiment")
    other.write_text("seed = 9")
    assert experiment_of(other, "--run", run)[0] == Experiment(seed=9)


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        (train, ["--train.modles", "4"], "--train.models"),
        (train, ["--train.models", "four"], "four"),
        (train, ["--train.optimizer", "lion"], "momentum"),
        (train, ["--train.mirror", "1"], "train.mirror"),
        (train, ["second.toml"], "second.toml"),
        (score, ["--score.views", "3"], "162"),
        (score, ["--train.models", "4"], "--train.models"),
        (attack, ["--protocol", "reference"], "reference-code"),
        (attack, ["--target", "t.npz", "--protocol", "reference-code"], "--protocol"),
        (attack, ["--target", "t.npz", "--null_check"], "--null_check"),
        (attack, ["--target", "t.npz", "--label-only"], "--label-only"),
    ],
)
def test_words_that_no_flag_takes_are_refused_by_the_parser(call, run, toml, script, words, said):
    before = files_of(run)
    if script is train:
        words = [toml, *words]
    code, _, err = call(script, "--run", run, *words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert files_of(run) == before


# Bad input: one line, code 2, no traceback, every file as it was.


@pytest.mark.parametrize("script", [train, score, attack])
@pytest.mark.parametrize("kind", ["missing", "empty", "file", "foreign"])
def test_a_place_without_a_run_is_refused(refused, tmp_path, script, kind):
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("")
    elif kind != "missing":
        place.mkdir()
    if kind == "foreign":
        (place / "thesis.tex").write_text("chapter 1")
    message = refused(script, "--run", place)
    assert message.startswith(f"{place}: holds no run (no config.toml); begin one with python")


def test_training_refuses_to_begin_where_something_else_is(refused, tmp_path, toml):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("chapter 1")
    assert "is a file, not a folder" in refused(train, toml, "--run", tmp_path / "file")
    message = refused(train, toml, "--run", tmp_path / "file" / "run")
    assert "file/run/.lock-train: cannot be written (Not a directory)" in message
    message = refused(train, toml, "--run", tmp_path / "folder")
    assert "is not empty and holds no run" in message
    assert "File name too long" in refused(train, toml, "--run", tmp_path / ("x" * 300))


def test_training_needs_an_experiment(refused):
    assert "no experiment: python train.py configs/digits.toml --run" in refused(train)


def test_a_missing_or_mistaken_config_is_refused(refused, tmp_path):
    run = tmp_path / "run"
    message = refused(train, tmp_path / "none.toml", "--run", run)
    assert message == f"{tmp_path}/none.toml: no such file; configs/ holds examples"
    path = tmp_path / "some.toml"
    path.write_text("[train]\nmodles = 4")
    message = refused(train, path, "--run", run)
    assert message == f"{path}: unknown key `train.modles`; did you mean `train.models`?"
    path.write_text('"two\\nlines" = 4')
    assert "unknown key `two lines`" in refused(train, path, "--run", run)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--train.models 3", "train.models = 3: models come in blocks of 2"),
        ("--train.keep 0.2", 'models come in blocks of 5 with train.keep = "0.2"'),
        ("--train.keep 1/3", "give a multiple of 3"),
        ("--train.keep 1", 'train.keep = "1": give a fraction between 0 and 1'),
        ("--train.keep 1/500 --train.models 500", "cannot be cut into 500 folds"),
        ("--train.batch_size 61", "each model has only 60 training examples"),
        ("--train.learning_rate nan", "train.learning_rate = nan: must be a finite number"),
        ("--train.shift 100", "a shift of 100 pixels does not fit images of 8×8"),
        ("--train.epochs 0", "train.epochs = 0: must be at least 1"),
        ("--seed -1", "seed = -1: must be at least 0"),
        ("--data.limit 1", "data.limit = 1"),
        ("--data.limit 5000", "data.limit = 5000"),
        ("--data.path nothing/here", "nothing/here"),
        ("--data.path \udcff", "data.path"),
        ("--network.arch rsnet", 'network.arch = "rsnet"'),
        ("--network.arch nowhere:network", "No module named"),
        ("--network.arch resnet --network.depth 9", "network.depth = 9: resnet has depth 6n+2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(refused, tmp_path, toml, words, said):
    assert said in refused(train, toml, "--run", tmp_path / "run", *words.split())


def test_a_run_does_not_go_on_as_another(refused, run, toml, monkeypatch):
    message = refused(train, "--run", run, "--train.ema", "0.5")
    assert "this run has train.ema = 0.9, not 0.5" in message
    message = refused(train, toml, "--run", run, "--seed", "4")
    assert "this run has seed = 3, not 4" in message
    message = refused(train, toml, "--run", run, "--train.models", "2")
    assert "this run has train.models = 4, not 2; models are only ever added" in message

    real = datasets.load
    changed = lambda *data: dataclasses.replace(real(*data), digest="0" * 64)  # noqa: E731
    monkeypatch.setattr(datasets, "load", changed)
    assert "the data have changed" in refused(train, "--run", run)
    assert "the data have changed" in refused(score, "--run", run)


def test_noisy_queries_and_gradient_norms_can_be_asked_for_later(call, refused, run):
    before = files_of(run)
    options = ("--score.noisy_queries", 3, "--score.noise", 0.5)
    assert call(score, "--run", run, *options, "--score.gradient_norm", "True").code == 0
    after = files_of(run)
    new = {f"{name}.{end}" for name in ("merlin", "gradient_norm") for end in ("npy", "json")}
    assert after.keys() - before.keys() == new
    assert {name: after[name] for name in before} == before
    message = refused(score, "--run", run, "--score.noisy_queries", "3")
    assert "made with score.noise = 0.5, not 0.02; ask for the same" in message
    found = score_files.read_score_set(run)
    assert found.merlin.shape == found.gradient_norm.shape == (4, 120)


def test_stages_out_of_order_name_what_is_missing_and_the_command(refused, run):
    checkpoint(run, 2, STEPS).unlink()
    message = refused(score, "--run", run)
    assert f"models 2–3 of 4 not trained yet; run python train.py --run {run}" in message
    in_parts(run, [0, 2, 3])
    message = refused(attack, "--run", run)
    assert f"model 1 of 4 not scored yet; run python score.py --run {run}" in message
    shutil.rmtree(run / "score_parts")
    message = refused(attack, "--run", run)
    assert message.endswith(f"scores.npy: no such file; run python score.py --run {run}")


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "dtype": lambda path: np.save(path, np.load(path).astype(np.float64)),
    "examples": lambda path: np.save(path, np.load(path)[..., :-1].copy()),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("name", "scripts"),
    [
        ("keep.npy", [train, score, attack]),
        ("labels.npy", [train, score, attack]),
        ("scores.npy", [score, attack]),
        ("logits.npy", [score, attack]),
    ],
)
def test_damaged_arrays_are_refused(refused, run, name, scripts, damage):
    if (name, damage) == ("scores.npy", "examples"):
        pytest.skip("the last axis of scores is its views")
    if (name, damage) == ("logits.npy", "examples"):
        scripts = [score]  # stage 3 cannot know how many classes there were
    DAMAGE[damage](run / name)
    for script in scripts:
        message = refused(script, "--run", run)
        assert message.startswith(str(run))
        assert name in message
        assert re.search(r"delete (it|both) and run (train|score|python score).py", message)


def test_a_damaged_config_of_a_run_is_refused(refused, run):
    path = run / "config.toml"
    whole = path.read_text()
    for text in ("", "hello", whole[: len(whole) // 2], whole.split("[run]")[0], "[run]\n"):
        path.write_text(text)
        for script in (train, score, attack):
            assert str(path) in refused(script, "--run", run)


def test_other_views_than_those_scored_are_refused(refused, run):
    message = refused(score, "--run", run, "--score.views", "1")
    assert "scores.npy: holds 2 views" in message
    assert "give --score.views 2 to go on with it, or delete" in message
    message = refused(score, "--run", run, "--score.views", "18")
    assert "scores.npy: holds 2 views" in message
    assert "delete" in message


def test_the_attack_refuses_what_it_cannot_do(refused, run, tmp_path):
    message = refused(attack, "--run", run, "--attack.queries", "3")
    assert "attack.queries = 3" in message
    assert "holds 2 views; give at most 2" in message
    message = refused(attack, "--run", run, "--attack.queries", "-1")
    assert message == "attack.queries = -1: must be at least 0 and at most 1000000000"
    file = tmp_path / "scores.npz"
    np.savez(file, scores=np.zeros((4, 8)), keep=np.zeros((4, 8), bool))
    assert "say where to write with --out DIR" in refused(attack, "--scores", file)
    either = "give either --run DIR, or --scores FILE.npz and --out DIR"
    assert refused(attack) == either
    assert refused(attack, "--run", run, "--scores", file, "--out", tmp_path / "o") == either
    message = refused(attack, "--scores", tmp_path / "none.npz", "--out", tmp_path / "o")
    assert "none.npz: no such file" in message
    message = refused(attack, "--run", run, "--out", file)
    assert "cannot be made a folder" in message
    reference_code = ("--run", run, "--protocol", "reference-code")
    for words in (["--null_check", "True"], ["--attack.extra", "a.b:c"]):
        message = refused(attack, *reference_code, *words)
        assert message.startswith(
            "--protocol reference-code: this protocol has its own attacks; leave"
        )
    message = refused(attack, *reference_code, "--label-only")
    assert message.startswith("--label-only: these attacks need a run")


@pytest.mark.usefixtures("sketched", "few_attacks")
def test_the_attack_writes_into_the_run_what_was_asked(call, run):
    code, out, err = call(attack, "--run", run, "--attack.queries", "1")
    assert (code, err) == (0, "")
    assert "lira-online" in out
    metrics = json.loads((run / "attack" / "metrics.json").read_text())
    assert (metrics["models"], metrics["queries"]) == (4, 1)
    assert (run / "attack" / "figures" / "roc.png").exists()


@pytest.mark.usefixtures("sketched")
def test_a_null_check_that_fails_is_the_exit_code(call, run, few_attacks, monkeypatch):
    keep = np.load(run / "keep.npy")

    def peeking(score_set, *_):  # knows the answer of one example in three
        known = np.arange(score_set.keep.shape[1]) % 3 == 0
        return {"peeking": np.where(known & score_set.keep, 1.0, 0.0)}

    assert call(attack, "--run", run, "--null_check", "True").code == 0
    monkeypatch.setattr(analyse, "ATTACKS", few_attacks | {"peeking": Family(peeking, {})})
    code, out, _ = call(attack, "--run", run, "--null-check")
    assert code == 1
    assert "NOT at chance: peeking" in out
    metrics = json.loads((run / "attack" / "metrics.json").read_text())
    assert not metrics["null_check"]["ok"]
    assert metrics["attacks"][-1]["targets"] == len(keep)


def test_a_target_is_audited_against_the_models_of_the_run(call, refused, run, tmp_path):
    scores = np.load(run / "scores.npy")
    np.savez(tmp_path / "mine.npz", scores=scores[0], keep=np.load(run / "keep.npy")[0])
    code, out, _ = call(
        attack, "--run", run, "--target", tmp_path / "mine.npz", "--attack.fpr", "0.1"
    )
    assert code == 0
    assert "against 4 shadow models" in out
    assert "In truth, on 60 members and 60 non-members" in out
    lines = (run / "target_mine" / "target.csv").read_text().splitlines()
    assert lines[0] == "example,log_ratio,p_value,member_decision,member"
    assert len(lines) == 121
    np.savez(tmp_path / "other.npz", scores=scores[0, :50])
    message = refused(attack, "--run", run, "--target", tmp_path / "other.npz")
    assert "other.npz" in message
    assert "120" in message
    message = refused(attack, "--target", tmp_path / "mine.npz")
    assert message == "give either --run DIR, or --scores FILE.npz and --out DIR"


@pytest.mark.usefixtures("sketched", "few_attacks")
def test_a_folder_of_the_public_code_is_read_as_it_is(call, run, tmp_path):
    scores, keep = np.load(run / "scores.npy"), np.load(run / "keep.npy")
    for model in range(4):
        folder = tmp_path / "exp" / f"experiment-{model}_4"
        (folder / "scores").mkdir(parents=True)
        np.save(folder / "keep.npy", keep[model])
        np.save(folder / "scores" / "0000000004.npy", scores[model])
    assert call(attack, "--scores", tmp_path / "exp", "--out", tmp_path / "out").code == 0
    assert call(attack, "--run", run).code == 0
    ours, theirs = (
        json.loads((out / "metrics.json").read_text())["attacks"][2]
        for out in (run / "attack", tmp_path / "out")
    )
    assert ours == theirs


@pytest.mark.usefixtures("sketched", "few_attacks")
def test_attacked_runs_are_compared_and_others_name_the_command(call, refused, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    assert call(attack, "--run", run).code == 0
    message = refused(attack, "compare", run, other, "--out", tmp_path / "both")
    assert "other" in message
    assert "attack.py --run" in message
    assert call(attack, "--run", other, "--attack.centre", "median").code == 0
    code, out, _ = call(attack, "compare", run, other, "--out", tmp_path / "both")
    assert code == 0
    assert "run" in out
    assert "other" in out
    assert {"compare.csv", "compare.md", "compare.tex", "roc.png"} <= set(
        files_of(tmp_path / "both")
    )


# Damage that a rerun mends.


def test_on_request_damaged_models_are_trained_and_scored_again(refused, call, run, made):
    in_parts(run, [0, 1])
    path = checkpoint(run, 2, STEPS)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"hello", whole[:999] + b"\0\0\0" + whole[1002:]):
        path.write_bytes(damaged)
        message = refused(score, "--run", run)
        assert f"{path}: damaged" in message
        assert message.endswith("run train.py with --repair True to train models 2–3 again")
    assert call(train, "--run", run).out == f"{run}: all 4 models are trained\n"
    out = call(train, "--run", run, "--repair", "True").out
    assert f"{run}: models 2–3 are trained again" in out
    assert call(score, "--run", run).code == 0
    assert_same_run(run, made)
    flip(run / "logits.npy")
    assert "logits.npy: damaged" in refused(attack, "--run", run)
    assert "logits.npy: damaged" in refused(score, "--run", run)
    assert call(score, "--run", run, "--repair", "True").code == 0
    assert_same_run(run, made)


def test_more_models_leave_the_first_as_they_are(call, refused, made, toml, tmp_path, monkeypatch):
    """In a folder with a space and an umlaut, named relative to here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    run = Path("a b") / "ü"
    assert call(train, toml, "--run", f"{run}/", "--train.models", "2").code == 0
    assert call(score, "--run", f"./{run}").code == 0
    two = {name: np.load(run / name) for name in ("keep.npy", "scores.npy", "logits.npy")}
    two_weights = weights(run)
    message = refused(attack, "--run", run)
    assert "2 models are fewer than two blocks of 2" in message

    assert call(train, "--run", run, "--train.models", "4").code == 0
    message = refused(attack, "--run", run)
    assert message.endswith(f"models 2–3 of 4 not scored yet; run python score.py --run '{run}'")
    assert weights(run).items() > two_weights.items()
    assert call(score, "--run", run).code == 0
    for name, rows in two.items():
        np.testing.assert_array_equal(np.load(run / name)[:2], rows)
    assert_same_run(run, made)


# Signals.


def signal_at(monkeypatch, count, signum):
    """Send a signal to this process when work advances for the `count`-th time."""
    real, calls = Progress.advance, []

    def advance(*arguments):
        calls.append(1)
        if len(calls) == count:
            signal.raise_signal(signum)
        real(*arguments)

    monkeypatch.setattr(Progress, "advance", advance)


def test_training_and_scoring_stopped_by_signals_go_on_to_the_same_run(
    call, refused, made, toml, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]

    def stopped(script, *arguments, at, signum, code):
        with monkeypatch.context() as patch:
            signal_at(patch, at, signum)
            outcome = call(script, *arguments)
        assert outcome.code == code
        last = outcome.err.splitlines()[-1]
        assert last.startswith(f"{run}: stopped")
        assert last.endswith("run the same command again to go on")
        assert "Traceback" not in outcome.err

    # Two groups of two models, four epochs of five steps, one step a dispatch: in the middle of an
    # epoch, then at the end of a group. The first dispatch of a call only warms up.
    monkeypatch.setattr(training, "DISPATCH_SECONDS", 0.0)
    stopped(train, toml, "--run", run, at=6, signum=signal.SIGINT, code=130)
    assert checkpoints.saved_groups(run) == [checkpoints.Group(0, 1, 7)]
    path = checkpoint(run, 0, 7)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert f"{path}: damaged" in refused(train, "--run", run)
    path.write_bytes(whole)
    assert "models 0–3 of 4 not trained" in refused(score, "--run", run)
    stopped(train, "--run", run, at=12, signum=signal.SIGTERM, code=143)
    assert checkpoints.saved_groups(run) == [checkpoints.Group(0, 1, STEPS)]
    assert call(train, "--run", run).code == 0
    assert call(train, "--run", run).out == f"{run}: all 4 models are trained\n"

    # Three dispatches of each group.
    monkeypatch.setattr(inference, "DISPATCH", 50)
    stopped(score, "--run", run, at=2, signum=signal.SIGTERM, code=143)
    assert "scores.npy: no such file; run python score.py" in refused(attack, "--run", run)
    stopped(score, "--run", run, at=5, signum=signal.SIGINT, code=130)
    assert "models 2–3 of 4 not scored" in refused(attack, "--run", run)
    assert call(score, "--run", run).code == 0
    assert_same_run(run, made)
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.usefixtures("sketched", "few_attacks")
def test_a_run_in_an_object_store_is_bitwise_that_on_a_disk(
    call, store, made, toml, tmp_path, monkeypatch
):
    run = as_path("gs://bucket/some/run")
    first, second = (["--run", run, "--shard", f"{shard}/2"] for shard in range(2))
    monkeypatch.setattr(training, "DISPATCH_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        signal_at(patch, 6, signal.SIGTERM)
        assert call(train, toml, *first).code == 143
    assert checkpoints.saved_groups(run) == [checkpoints.Group(0, 1, 7)]
    assert call(train, *first).code == 0
    assert call(score, *first).code == 0
    message = "not scored yet; run python score.py --run gs://bucket/some/run"
    assert message in call(attack, "--run", run).err
    assert call(train, *second).code == 0

    name = "bucket/some/run/checkpoints/models_00002-00003_step_20.npz"
    store[name] = store[name][:-9]
    assert f"error: gs://{name}: damaged" in call(score, *second).err
    assert "models 2–3 are trained again" in call(train, *second, "--repair", "True").out
    assert call(score, *second).code == 0

    assert_same_run(run, made)
    words = ["--run", made, "--out", tmp_path / "attack"]
    assert (call(attack, "--run", run).code, call(attack, *words).code) == (0, 0)
    prefix = "bucket/some/run/attack/"
    found = {name.removeprefix(prefix): x for name, x in store.items() if name.startswith(prefix)}
    on_disk = files_of(tmp_path / "attack")
    assert found.keys() == {name for name in on_disk if not name.startswith(".")}
    # All but what tells where the scores were.
    assert [name for name in found if found[name] != on_disk[name]] == [
        name for name in found if name in ("metrics.json", "report.html")
    ]
    on_disk = files_of(made)
    assert {f"bucket/some/run/{name}" for name in on_disk if not name.startswith(".")} == {
        name for name in store if not name.startswith(prefix)
    }


# Processes of their own, and the installed command.


def python(*words, **settings):
    """Run Python from the repository."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False, **settings,
    )  # fmt: skip


def test_a_script_ends_with_the_code_and_line_of_its_mistake(tmp_path):
    done = python("train.py", tmp_path / "none.toml", "--run", tmp_path, stdout=subprocess.PIPE)
    message = f"error: {tmp_path}/none.toml: no such file; configs/ holds examples\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_a_script_can_be_profiled(files, tmp_path):
    """As cProfile runs it, annotations cannot be looked up in `__main__`."""
    profile = ("-m", "cProfile", "-o", tmp_path / "profile")
    done = python(*profile, "attack.py", *files, "--out", tmp_path, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "against 4 shadow models" in done.stdout
    assert (tmp_path / "profile").stat().st_size


def test_a_reader_that_goes_away_gets_no_traceback(files, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = python("attack.py", *files, "--out", tmp_path, stdout=write_end)
    os.close(write_end)
    assert done.returncode == 1
    assert done.stderr == ""
    assert (tmp_path / "target.json").exists()


def test_a_terminal_without_our_letters_is_no_obstacle(call, run, monkeypatch):
    checkpoint(run, 2, STEPS).unlink()
    terminal = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", terminal)
    assert call(score, "--run", run).code == 2
    assert terminal.buffer.getvalue().startswith(b"error: ")
    assert b"models 2\\u20133 of 4 not trained yet" in terminal.buffer.getvalue()


@pytest.mark.parametrize("command", main.COMMANDS)
def test_the_installed_command_has_every_stage(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lira-jax", command, "--help"])
    main.main()
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"usage: lira-jax {command} [-h]")


def test_the_installed_command_attacks_a_target(files, tmp_path, monkeypatch, capsys):
    words = ["lira-jax", "target", *map(str, files), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    main.main()
    assert "against 4 shadow models" in capsys.readouterr().out


def test_the_installed_command_lists_its_stages(monkeypatch, capsys):
    for words, code in ((["--help"], 0), (["--version"], 0), ([], 2), (["atack"], 2)):
        monkeypatch.setattr(sys, "argv", ["lira-jax", *words])
        with pytest.raises(SystemExit) as end:
            main.main()
        out, err = capsys.readouterr()
        assert end.value.code == code
        assert lira_jax.__version__ in out or "{train,score,attack,compare,target}" in out + err


# What imports nothing heavy.


def test_the_package_and_its_help_import_neither_jax_nor_what_else_is_slow():
    code = """
import sys
import lira_jax
slow = {"numpy", "scipy", "matplotlib", "jax", "flax"}
assert not slow & set(sys.modules), slow & set(sys.modules)
for command in ("train", "score", "attack"):
    __import__(f"lira_jax.commands.{command}")
names = [name for name in lira_jax.__all__ if getattr(lira_jax, name).__name__ == name]
assert names == lira_jax.__all__, names
assert set(names) <= set(dir(lira_jax))
assert not {"jax", "flax"} & set(sys.modules)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lira_jax.nothing
