"""Files of a run: written whole, checked when read, and left alone when something is wrong."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lira_jax import config
from lira_jax.config import ScoreConfig
from lira_jax.data import membership
from lira_jax.errors import InputError
from lira_jax.run import run_dir, storage
from tests.conftest import files_of, refusal, with_train

E, K = 12, 3
PHI = run_dir.phi(2, K)
VERSIONS = {"data_digest": "d" * 64, "numpy": "2"}
LABELS = (np.arange(E) % K).astype(np.int32)


def masks(models):
    return membership.blocked_masks(3, models, E, 1, 2)


def prepare(run, experiment, **changes):
    models = experiment.train.models
    arguments = {"keep": masks(models), "labels": LABELS, "versions": VERSIONS} | changes
    run_dir.prepare(run, experiment, **arguments)()


@pytest.fixture
def run(tmp_path, tiny):
    """A run of two models that is prepared, not trained."""
    prepare(tmp_path / "run", tiny)
    return tmp_path / "run"


# A run's own config.toml.


def test_a_run_remembers_its_experiment_and_versions(run, tiny):
    assert run_dir.read_config(run) == tiny
    assert run_dir.read_versions(run) == VERSIONS
    keep, labels = run_dir.read_membership(run, tiny)
    np.testing.assert_array_equal(keep, masks(2))
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
    "make", [lambda run: None, lambda run: run.mkdir(), lambda run: run.touch()]
)
def test_a_folder_without_a_run_is_named(tmp_path, make):
    make(tmp_path / "none")
    message = refusal(tmp_path, lambda: run_dir.read_config(tmp_path / "none"))
    assert "holds no run (no config.toml); begin one with python train.py" in message


def test_a_config_of_a_run_cut_anywhere_is_refused_or_has_lost_only_versions(run, tiny):
    path = run / run_dir.CONFIG
    whole, messages = path.read_bytes(), []
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            found = run_dir.read_config(run)
        except InputError as error:
            messages.append(str(error))
        else:
            assert found == tiny
            assert run_dir.read_versions(run)["data_digest"] == VERSIONS["data_digest"]
    assert len(messages) > 0.9 * len(whole)
    assert all(str(path) in message for message in messages)


@pytest.mark.parametrize("text", ["run = 3", "[run]", "[run]\ndata_digest = 3", "seed = 3"])
def test_a_config_of_a_run_without_its_digest_is_foreign(run, text):
    (run / run_dir.CONFIG).write_text(text)
    assert "data_digest" in refusal(run, lambda: run_dir.read_config(run))


# Beginning a run and going on with it.


def test_preparing_twice_changes_nothing(run, tiny):
    before = files_of(run)
    prepare(run, tiny)
    assert files_of(run) == before


def test_settings_that_change_no_weight_are_taken_over(run, tiny):
    before = files_of(run)
    changed = with_train(tiny, group=7, checkpoint_minutes=1.0, eval_examples=3)
    changed = dataclasses.replace(changed, score=ScoreConfig(views=18))
    prepare(run, changed)
    assert run_dir.read_config(run) == changed
    after = files_of(run)
    assert before.keys() == after.keys()
    assert {name for name in after if after[name] != before[name]} == {"config.toml"}


def test_more_models_keep_the_masks_of_the_first(run, tiny):
    prepare(run, with_train(tiny, models=6))
    keep, labels = run_dir.read_membership(run, run_dir.read_config(run))
    assert keep.shape == (6, E)
    np.testing.assert_array_equal(keep[:2], masks(2))
    np.testing.assert_array_equal(labels, LABELS)


def test_a_folder_of_something_else_is_left_alone(tmp_path, tiny):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    message = refusal(tmp_path, lambda: prepare(tmp_path, tiny))
    assert "is not empty and holds no run" in message


def test_a_file_is_no_run(tmp_path, tiny):
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(tmp_path, lambda: prepare(tmp_path / "file", tiny))
    assert "Not a directory" in refusal(tmp_path, lambda: prepare(tmp_path / "file" / "run", tiny))


def test_a_changed_field_is_named_with_both_values(run, tiny):
    changed = with_train(tiny, learning_rate=0.5)
    message = refusal(run, lambda: prepare(run, changed))
    assert "this run has train.learning_rate = 0.1, not 0.5" in message


def test_fewer_models_are_refused(run, tiny):
    prepare(run, with_train(tiny, models=4))
    message = refusal(run, lambda: prepare(run, tiny))
    assert "train.models = 4, not 2; models are only ever added" in message


def test_changed_data_labels_and_masks_are_refused(run, tiny):
    other = {"data_digest": "e" * 64}
    message = refusal(run, lambda: prepare(run, tiny, versions=other))
    assert "the data have changed since this run began" in message
    message = refusal(run, lambda: prepare(run, tiny, labels=LABELS[::-1].copy()))
    assert "labels.npy: labels differ" in message
    message = refusal(run, lambda: prepare(run, tiny, keep=~masks(2)))
    assert "keep.npy: masks differ" in message


@pytest.mark.parametrize("name", ["keep.npy", "labels.npy"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"hello", lambda b: b[:140] + b"\7" + b[141:]]
)
def test_damaged_masks_and_labels_are_refused_and_written_again_once_deleted(
    run, tiny, name, damage
):
    whole = files_of(run)
    (run / name).write_bytes(damage(whole[name]))
    message = refusal(run, lambda: prepare(run, tiny))
    assert f"{run}/{name}: " in message
    assert message.endswith("delete it and run train.py again, or give train.py --repair True")
    (run / name).unlink()
    prepare(run, tiny)
    assert files_of(run) == whole
    (run / name).write_bytes(damage(whole[name]))
    prepare(run, tiny, repair=True)
    assert files_of(run) == whole


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("keep.npy", masks(2).astype(np.uint8)),
        ("keep.npy", masks(2)[:, :-1]),
        ("keep.npy", masks(2)[:1]),
        ("labels.npy", LABELS.astype(np.int64)),
        ("labels.npy", LABELS[:-1]),
    ],
)
def test_masks_and_labels_of_another_type_or_shape_are_refused(run, tiny, name, array):
    run_dir.write_array(run / name, array)
    assert name in refusal(run, lambda: prepare(run, tiny))
    message = refusal(run, lambda: run_dir.read_membership(run, tiny))
    assert name in message
    assert "delete" in message


@pytest.mark.parametrize("models", [2, 4])
@pytest.mark.parametrize("writes", range(3))
def test_a_call_killed_between_two_files_can_be_repeated(
    tmp_path, tiny, models, writes, monkeypatch
):
    """Killed after 0, 1, 2 of its writes, beginning a run of 2 models or taking 2 to 4."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    if models == 4:
        prepare(run, tiny)
    experiment = with_train(tiny, models=models)
    prepare(whole, experiment)
    left = writes

    def killed(path, write, real=storage.write_whole):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        real(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_whole", killed)
        try:
            prepare(run, experiment)
        except KeyboardInterrupt:
            pass
        else:
            assert (models, writes) == (4, 2)  # going on writes two files only
    prepare(run, experiment)
    assert files_of(run) == files_of(whole)


# The log.


def record(epoch, first=0):
    return {"models": [first, first + 1], "epoch": epoch, "loss": [0.5, 0.25]}


def test_the_log_is_read_in_order_of_models(run):
    folder = run / run_dir.TRAIN_LOG
    run_dir.write_log_file(folder / "models_00002-00003.jsonl", [record(1, 2)])
    run_dir.write_log_file(folder / "models_00000-00001.jsonl", [record(1), record(2)])
    (folder / ".DS_Store").touch()
    assert run_dir.read_log(run) == [record(1), record(2), record(1, 2)]
    assert run_dir.read_log_file(folder / "none.jsonl") == []


@pytest.mark.parametrize("content", [b"dear diary\n\xff\n", b"{}\n{}\n", b"3\n4\n", b"[\n]\n"])
def test_a_foreign_log_is_refused(run, content):
    path = run / run_dir.TRAIN_LOG / "models_00000-00001.jsonl"
    storage.write_whole(path, lambda file: file.write(content))
    message = refusal(run, lambda: run_dir.read_log(run))
    assert f"{path}: line 1 is not one that training wrote; delete this file" in message


# Scores.


def rows(models, value=0):
    """φ and logits of some models, each row telling its model."""
    number = np.array(models, np.float32)[:, None, None] + value
    return np.full((len(models), E, 2), number), np.full((len(models), E, K), -number)


def scored(run):
    return run_dir.scored(run, PHI, 9, E)


def assemble(run, models):
    return run_dir.assemble(run, PHI, models, E)


def test_scores_in_parts_come_together_in_order_of_models(run):
    run_dir.write_part(run, PHI, 2, *rows([2, 3, 4]))
    assert scored(run).models == {2, 3, 4}
    assert assemble(run, 6) == [0, 1, 5]
    run_dir.write_part(run, PHI, 5, *rows([5]))
    run_dir.write_part(run, PHI, 0, *rows([0, 1]))
    assert assemble(run, 6) == []
    phi, logits = rows(range(6))
    np.testing.assert_array_equal(np.load(run / "scores.npy"), phi)
    np.testing.assert_array_equal(np.load(run / "logits.npy"), logits)
    assert not (run / run_dir.SCORE_PARTS).exists()
    assert scored(run).models == set(range(6))
    before = files_of(run)
    assert assemble(run, 6) == []
    assert files_of(run) == before


def test_scores_of_more_models_keep_the_first(run):
    run_dir.write_part(run, PHI, 0, *rows([0, 1], 100))
    assert assemble(run, 2) == []
    run_dir.write_part(run, PHI, 2, *rows([2, 3]))
    assert scored(run).models == {0, 1, 2, 3}
    assert assemble(run, 4) == []
    phi = np.load(run / "scores.npy")
    assert phi[:, 0, 0].tolist() == [100, 101, 2, 3]


@pytest.mark.parametrize("writes", range(7))
def test_scoring_killed_between_any_two_files_goes_on_to_the_same(run, writes, monkeypatch):
    """Two parts of two files each, then the two files of all."""
    whole = shutil.copytree(run, run.with_name("whole"))
    run_dir.write_part(whole, PHI, 0, *rows([0, 1, 2, 3]))
    assemble(whole, 4)
    left = writes

    def killed(path, write, real=storage.write_whole):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        real(path, write)

    def go_on():
        for first in (0, 2):
            if first not in scored(run).models:
                run_dir.write_part(run, PHI, first, *rows([first, first + 1]))
        assert assemble(run, 4) == []

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_whole", killed)
        if writes < 6:
            with pytest.raises(KeyboardInterrupt):
                go_on()
        else:
            go_on()
    go_on()
    assert files_of(run) == files_of(whole)


def test_two_shards_that_put_the_parts_together_at_once_write_the_same(run, monkeypatch):
    """The other one does it all while this one is at its first row, and removes the parts."""
    run_dir.write_part(run, PHI, 0, *rows([0, 1]))
    run_dir.write_part(run, PHI, 2, *rows([2, 3]))
    real, calls = run_dir.write_rows, []

    def write_rows(path, dtype, shape, parts):
        calls.append(path.name)
        if len(calls) == 1:
            assert assemble(run, 4) == []
        real(path, dtype, shape, parts)

    monkeypatch.setattr(run_dir, "write_rows", write_rows)
    assert assemble(run, 4) == []
    assert calls == ["logits.npy", "logits.npy", "scores.npy"]
    np.testing.assert_array_equal(np.load(run / "scores.npy"), rows(range(4))[0])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["scores.npy", "logits.npy"])
def test_damaged_scores_are_refused_and_scored_anew_on_request(run, name):
    run_dir.write_part(run, PHI, 0, *rows([0, 1]))
    assemble(run, 2)
    flip(run / name)
    message = refusal(run, lambda: scored(run))
    assert message.startswith(f"{run}/{name}: damaged: its length or checksum")
    assert message.endswith("delete it and run score.py again, or give score.py --repair True")
    assert name in refusal(run, lambda: run_dir.read_score_set(run))
    assert run_dir.scored(run, PHI, 9, E, repair=True).models == set()


@pytest.mark.parametrize("kind", ["scores", "logits"])
def test_a_damaged_part_is_refused_and_scored_anew_on_request(run, kind):
    run_dir.write_part(run, PHI, 0, *rows([0, 1]))
    run_dir.write_part(run, PHI, 2, *rows([2, 3]))
    flip(run / run_dir.SCORE_PARTS / f"{kind}_00002-00003.npy")
    assert f"{kind}_00002-00003.npy: damaged" in refusal(run, lambda: scored(run))
    with pytest.raises(InputError, match=f"{kind}_00002-00003.npy: damaged"):
        assemble(run, 4)
    assert run_dir.scored(run, PHI, 9, E, repair=True).models == {0, 1}
    run_dir.write_part(run, PHI, 2, *rows([2, 3]))
    assert assemble(run, 4) == []


def test_scores_of_other_views_or_examples_are_refused(run):
    run_dir.write_part(run, PHI, 0, *rows([0, 1]))
    message = refusal(run, lambda: run_dir.scored(run, run_dir.phi(18, K), 9, E))
    assert "holds 2 views, not score.views = 18; give --score.views 2" in message
    assert "delete it" in refusal(run, lambda: run_dir.scored(run, PHI, 9, E + 1))
    assemble(run, 2)
    message = refusal(run, lambda: run_dir.scored(run, run_dir.phi(18, K), 9, E))
    assert "scores.npy: holds 2 views, not score.views = 18; give --score.views 2" in message


@pytest.fixture
def whole(run):
    run_dir.write_part(run, PHI, 0, *rows([0, 1]))
    assemble(run, 2)
    return run


def test_a_scored_run_gives_its_score_set(whole):
    found = run_dir.read_score_set(whole)
    assert found.block == 2
    assert found.scores.shape == (2, E, 2)
    assert found.logits.shape == (2, E, K)
    np.testing.assert_array_equal(found.keep, masks(2))
    np.testing.assert_array_equal(found.labels, LABELS)


def test_models_not_scored_yet_are_named_with_the_command_to_run(whole, tiny):
    command = f"run python score.py --run {whole}"
    prepare(whole, with_train(tiny, models=6))
    message = refusal(whole, lambda: run_dir.read_score_set(whole))
    assert message.endswith(f"scores.npy: models 2–5 of 6 not scored yet; {command}")
    run_dir.write_part(whole, PHI, 2, *rows([2, 3, 4]))
    message = refusal(whole, lambda: run_dir.read_score_set(whole))
    assert message.endswith(f"scores.npy: model 5 of 6 not scored yet; {command}")
    run_dir.write_part(whole, PHI, 5, *rows([5]))
    message = refusal(whole, lambda: run_dir.read_score_set(whole))
    assert message.endswith(f"all models are scored, but not in one file yet; {command}")
    (whole / run_dir.SCORES).unlink()
    message = refusal(whole, lambda: run_dir.read_score_set(whole))
    assert message.endswith(f"models 0–1 of 6 not scored yet; {command}")
    shutil.rmtree(whole / run_dir.SCORE_PARTS)
    message = refusal(whole, lambda: run_dir.read_score_set(whole))
    assert message.endswith(f"scores.npy: no such file; {command}")


def test_a_command_to_run_can_be_pasted(tmp_path, tiny):
    run = tmp_path / "my runs" / "it's"
    prepare(run, tiny)
    message = refusal(run, lambda: run_dir.read_score_set(run))
    assert message.endswith(f"""run python score.py --run '{tmp_path}/my runs/it'"'"'s'""")


# Arrays that not every run has.

MERLIN, NORM = run_dir.merlin(100, 0.02), run_dir.gradient_norm()


def column(models, value=0.0):
    return np.repeat(np.array(models, np.float32)[:, None] / 10 + value, E, axis=1)


@pytest.mark.parametrize("product", [MERLIN, NORM])
def test_an_optional_array_comes_together_and_into_the_score_set(whole, product):
    (name,) = product.arrays
    before = files_of(whole)
    assert getattr(run_dir.read_score_set(whole), name) is None
    run_dir.write_part(whole, product, 1, column([1]))
    assert run_dir.assemble(whole, product, 2, E) == [0]
    assert getattr(run_dir.read_score_set(whole), name) is None
    run_dir.write_part(whole, product, 0, column([0]))
    assert run_dir.assemble(whole, product, 2, E) == []
    np.testing.assert_array_equal(getattr(run_dir.read_score_set(whole), name), column([0, 1]))
    after = files_of(whole)
    assert after.keys() - before.keys() == {f"{name}.npy", *[product.record] * (name == "merlin")}
    assert {path: after[path] for path in before} == before


def test_an_optional_array_of_fewer_models_than_the_run_is_left_out(whole, tiny):
    run_dir.write_part(whole, NORM, 0, column([0, 1]))
    run_dir.assemble(whole, NORM, 2, E)
    prepare(whole, with_train(tiny, models=4))
    run_dir.write_part(whole, PHI, 2, *rows([2, 3]))
    assemble(whole, 4)
    assert run_dir.read_score_set(whole).gradient_norm is None
    run_dir.write_part(whole, NORM, 2, column([2, 3]))
    assert run_dir.assemble(whole, NORM, 4, E) == []
    np.testing.assert_array_equal(run_dir.read_score_set(whole).gradient_norm, column(range(4)))


def test_noisy_queries_of_other_settings_are_refused_by_name_and_parts_of_them_are_not_used(run):
    run_dir.write_part(run, run_dir.merlin(50, 0.02), 0, column([0, 1], 0.5))
    assert run_dir.scored(run, MERLIN, 2, E).models == set()
    run_dir.write_part(run, MERLIN, 0, column([0, 1]))
    assert run_dir.assemble(run, MERLIN, 2, E) == []
    np.testing.assert_array_equal(np.load(run / "merlin.npy"), column([0, 1]))
    assert not (run / MERLIN.parts).exists()
    for other in (run_dir.merlin(50, 0.02), run_dir.merlin(100, 0.1)):
        for repair in (False, True):
            ask = functools.partial(run_dir.scored, run, other, 2, E, repair=repair)
            message = refusal(run, ask)
            assert "merlin.npy: made with score.noisy_queries = 100, score.noise = 0.02" in message
            assert "delete merlin.npy to make it anew" in message
    (run / "merlin.npy").unlink()
    assert run_dir.scored(run, run_dir.merlin(50, 0.02), 2, E).models == set()


@pytest.mark.parametrize("content", [None, "", "{}", '{"score.noise": 0.02}', "[1]"])
def test_noisy_queries_of_unknown_settings_are_not_used(run, content):
    run_dir.write_part(run, MERLIN, 0, column([0, 1]))
    run_dir.assemble(run, MERLIN, 2, E)
    (run / MERLIN.record).unlink() if content is None else (run / MERLIN.record).write_text(content)
    message = refusal(run, lambda: run_dir.scored(run, MERLIN, 2, E))
    assert "merlin.json, which tells its settings, is missing or damaged" in message
    assert "give score.py --score.noisy_queries 100 --score.noise 0.02 --repair True" in message
    assert run_dir.scored(run, MERLIN, 2, E, repair=True).models == set()
    assert not (run / "merlin.npy").exists()


@pytest.mark.parametrize("product", [MERLIN, NORM])
def test_a_damaged_optional_array_is_refused_with_the_command_that_mends_it(whole, product):
    (name,) = product.arrays
    run_dir.write_part(whole, product, 0, column([0, 1]))
    run_dir.assemble(whole, product, 2, E)
    flip(whole / f"{name}.npy")
    message = refusal(whole, lambda: run_dir.scored(whole, product, 2, E))
    assert f"{name}.npy: damaged" in message
    assert message.endswith(f"run {product.command} again, or give {product.command} --repair True")
    assert f"{name}.npy: damaged" in refusal(whole, lambda: run_dir.read_score_set(whole))
    assert run_dir.scored(whole, product, 2, E, repair=True).models == set()
    run_dir.write_array(whole / f"{name}.npy", column([0, 1, 2]))
    message = refusal(whole, lambda: run_dir.read_score_set(whole))
    assert f"{name}.npy: holds 3 models, the run 2; delete it" in message


@pytest.mark.parametrize("writes", range(5))
def test_noisy_queries_killed_between_any_two_files_go_on_to_the_same(run, writes, monkeypatch):
    """Two parts, the settings, the file of all."""
    whole = shutil.copytree(run, run.with_name("whole"))
    run_dir.write_part(whole, MERLIN, 0, column(range(4)))
    run_dir.assemble(whole, MERLIN, 4, E)
    left = writes

    def killed(path, write, real=storage.write_whole):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        real(path, write)

    def go_on():
        for first in (0, 2):
            if first not in run_dir.scored(run, MERLIN, 4, E).models:
                run_dir.write_part(run, MERLIN, first, column([first, first + 1]))
        assert run_dir.assemble(run, MERLIN, 4, E) == []

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_whole", killed)
        if writes < 4:
            with pytest.raises(KeyboardInterrupt):
                go_on()
        else:
            go_on()
    go_on()
    assert files_of(run) == files_of(whole)


def test_canaries_are_the_last_examples(tmp_path, tiny):
    data = dataclasses.replace(tiny.data, canaries=3)
    run = tmp_path / "run"
    prepare(run, dataclasses.replace(tiny, data=data))
    run_dir.write_part(run, PHI, 0, *rows([0, 1]))
    assemble(run, 2)
    assert run_dir.read_score_set(run).canary.tolist() == [False] * (E - 3) + [True] * 3
    message = refusal(run, lambda: prepare(run, tiny))
    assert "this run has data.canaries = 3, not 0" in message
    noise = dataclasses.replace(tiny, data=dataclasses.replace(data, canary_kind="noise"))
    message = refusal(run, lambda: prepare(run, noise))
    assert "this run has data.canary_kind = 'mislabelled', not 'noise'" in message


def test_a_run_of_before_there_were_canaries_and_options_is_read(whole, tiny):
    path = whole / run_dir.CONFIG
    new = {
        "data": ("skip", "canaries", "canary_kind"),
        "network": ("norm",),
        "score": ("noisy_queries", "noise", "gradient_norm", "memguard"),
        "attack": ("extra", "fpr"),
        "defence": True,
        "label_only": True,
    }
    section, old, dropped = "", [], set()
    for line in path.read_text().splitlines(keepends=True):
        section = line.strip()[1:-1] if line.startswith("[") else section
        name, absent = line.split(" = ")[0], new.get(section, ())
        if absent is True or name in absent:
            dropped.add((section, "") if absent is True else (section, name))
        else:
            old.append(line)
    assert len(dropped) == 12
    path.write_text("".join(old))
    assert run_dir.read_config(whole) == tiny
    found = run_dir.read_score_set(whole)
    assert (found.canary, found.merlin, found.gradient_norm) == (None, None, None)


# Locks.


def test_two_processes_do_not_work_on_the_same_models(run):
    """A lock belongs to a process: the other holder is one."""
    code = f"""
import sys
from pathlib import Path
from lira_jax import run_dir
with run_dir.lock(Path({str(run)!r}), "train", range(4, 8)):
    print("held", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        for models in (range(4, 8), range(0, 5), range(7, 9), range(0, 100)):
            said = r"another train\.py is at work on models among"
            with pytest.raises(InputError, match=said), run_dir.lock(run, "train", models):
                pass
        for stage, models in (("train", range(0, 4)), ("train", range(8, 9)), ("score", range(9))):
            with run_dir.lock(run, stage, models):
                pass
        with run_dir.lock(run, "train", range(5, 5)):
            pass
    finally:
        other.kill()
        other.communicate()
    with run_dir.lock(run, "train", range(8)):
        pass


def test_what_a_killed_process_left_half_written_is_removed_and_what_is_being_written_is_not(run):
    """In a process of its own: no file of ours is ever being written by ourselves."""
    code = f"""
import sys
from pathlib import Path
from lira_jax import storage
def write(file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
storage.write_whole(Path({str(run)!r}) / "score_parts" / "a.npy", write)
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    (run / ".unfinished-0-b.npy").touch()
    try:
        assert writer.stdout.readline() == "writing\n"
        with run_dir.lock(run, "score", range(2)):
            unfinished = [name for name in files_of(run) if ".unfinished-" in name]
            assert len(unfinished) == 1
            assert unfinished[0].endswith("-a.npy")
    finally:
        writer.kill()
        writer.communicate()
    with run_dir.lock(run, "score", range(2)):
        assert not [name for name in files_of(run) if ".unfinished-" in name]


def test_parts_of_other_shards_are_not_read_until_all_come_together(run):
    run_dir.write_part(run, PHI, 0, *rows([0, 1]))
    run_dir.write_part(run, PHI, 2, *rows([2, 3]))
    flip(run / run_dir.SCORE_PARTS / "scores_00002-00003.npy")
    assert run_dir.scored(run, PHI, 4, E, range(2)).models == {0, 1, 2, 3}
    before = files_of(run)
    assert run_dir.scored(run, PHI, 4, E, range(2), repair=True).models == {0, 1, 2, 3}
    assert files_of(run) == before
    with pytest.raises(InputError, match=r"scores_00002-00003\.npy: damaged"):
        assemble(run, 4)


def test_parts_of_models_that_are_being_added_are_left_alone(run):
    run_dir.write_part(run, PHI, 0, *rows([0, 1]))
    run_dir.write_part(run, PHI, 2, *rows([2, 3]))
    assert run_dir.scored(run, PHI, 2, E).models == {0, 1}


def test_shards_that_begin_a_run_at_once_all_may(tmp_path, tiny, monkeypatch):
    """One writes config.toml while this one looks at what there is."""
    run, real = tmp_path / "run", run_dir.names

    def names(folder, calls=[]):  # noqa: B006
        found = real(folder)
        if not calls:
            calls.append(1)
            prepare(run, tiny)
        return found

    monkeypatch.setattr(run_dir, "names", names)
    prepare(run, tiny)
    assert run_dir.read_config(run) == tiny


def test_a_disk_that_fails_is_not_taken_for_damage(run, monkeypatch):
    run_dir.write_part(run, PHI, 0, *rows([0, 1]))
    assemble(run, 2)
    before = files_of(run)

    def fail(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(storage, "_is_as_written", fail)
    with pytest.raises(OSError, match="Stale file handle"):
        run_dir.scored(run, PHI, 2, E, repair=True)
    assert files_of(run) == before


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0–1"), ([0, 1, 2, 5], "0–2, 5"), ([1, 3, 4], "1, 3–4")],
)
def test_numbers_in_messages_are_ranges(numbers, text):
    assert run_dir.as_ranges(numbers) == text


def test_no_temporary_file_is_left(whole):
    assert not [name for name in os.listdir(whole) if name.startswith(".")]


def test_a_config_is_read_as_it_is_written(run, tiny):
    assert config.load(run / run_dir.CONFIG) == tiny
