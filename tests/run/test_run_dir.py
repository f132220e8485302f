"""Files of a run: written whole, checked when read, and left alone when something is wrong."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from lira_jax import config_file, storage
from lira_jax.config import ScoreConfig
from lira_jax.data import membership
from lira_jax.errors import InputError
from lira_jax.run import run_dir
from tests.conftest import files_of, refusal, with_train

E, K = 12, 3
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
    message = refusal(run, lambda: run_dir.read_config(run))
    assert "config.toml: " in message
    assert any(words in message for words in ("put it back", "write [run]", "must be text"))


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
    assert "labels.npy: are not the data's, or config.toml is of another run" in message
    message = refusal(run, lambda: prepare(run, tiny, keep=~masks(2)))
    assert "keep.npy: masks are not those of this seed, or config.toml is of another" in message


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
    storage.write_array(run / name, array)
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
    assert f"{path}: line 1: not one that training wrote (" in message


# Locks.


def test_two_processes_do_not_work_on_the_same_models(run):
    """A lock belongs to a process: the other holder is one."""
    code = f"""
import sys
from pathlib import Path
from lira_jax.run import run_dir
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
    (run / ".unfinished-0123456789ab-b.npy").touch()
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


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0–1"), ([0, 1, 2, 5], "0–2, 5"), ([1, 3, 4], "1, 3–4")],
)
def test_numbers_in_messages_are_ranges(numbers, text):
    assert run_dir.as_ranges(numbers) == text


def test_a_config_is_read_as_it_is_written(run, tiny):
    assert config_file.load(run / run_dir.CONFIG) == tiny
