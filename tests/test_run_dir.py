"""Files of a run: written whole, checked when read, and left alone when something is wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax import config, membership, run_dir
from lira_jax.config import ScoreConfig
from lira_jax.errors import InputError
from tests.conftest import files_of, with_train

E, K = 12, 3
VERSIONS = {"data_digest": "d" * 64, "numpy": "2"}
LABELS = (np.arange(E) % K).astype(np.int32)


def masks(models):
    return membership.blocked_masks(3, models, E, 1, 2)


def prepare(run, experiment, **changes):
    models = experiment.train.models
    arguments = {"keep": masks(models), "labels": LABELS, "versions": VERSIONS} | changes
    run_dir.prepare(run, experiment, **arguments)


@pytest.fixture
def run(tmp_path, tiny):
    """A run of two models that is prepared, not trained."""
    prepare(tmp_path / "run", tiny)
    return tmp_path / "run"


def refusal(folder, call):
    """The one line with which a call is refused; every file stays as it was."""
    before = files_of(folder)
    with pytest.raises(InputError) as caught:
        call()
    assert files_of(folder) == before
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def npy(array, **changes):
    file = io.BytesIO()
    np.save(file, array, **changes)
    return file.getvalue()


# Writing.


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    run_dir.write_text(tmp_path / "a.txt", "old")

    def half(path):
        path.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_dir.write_whole(tmp_path / "a.txt", half)
    assert files_of(tmp_path) == {"a.txt": b"old"}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    message = refusal(tmp_path, lambda: run_dir.write_text(tmp_path / "file" / "a.txt", "new"))
    assert f"{tmp_path}/file/a.txt: cannot be written (" in message


# Reading.


def test_what_is_written_is_read_by_memory_map(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    run_dir.write_array(tmp_path / "a.npy", array)
    read = run_dir.read_array(tmp_path / "a.npy", np.float32, (2, None, 4), "")
    assert isinstance(read, np.memmap)
    assert not read.flags.writeable
    np.testing.assert_array_equal(read, array)


good = np.zeros((2, 3), np.float32)
objects = npy(np.array([{}, 1], object))
archive = io.BytesIO()
np.savez(archive, scores=good)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is a text file\n",
        npy(good)[:5],
        npy(good)[:60],
        npy(good)[:-1],
        npy(good).replace(b"(2, 3)", b"(9, 9)"),
        npy(good).replace(b"(2, 3)", b"(-2,3)"),
        npy(good).replace(b"(2, 3)", b"{2, 3}"),
        npy(good).replace(b"'<f4'", b"'<q4'"),
        archive.getvalue(),
        b"PK\x03\x04 no archive",
        objects,
        npy(good.astype(">f4")),
        npy(good.astype(np.float64)),
        npy(good.T.copy()),
        npy(good[0]),
        npy(good[:, :, np.newaxis]),
        npy(np.float32(1)),
    ],
)
def test_a_truncated_or_foreign_array_is_refused(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    message = refusal(
        tmp_path, lambda: run_dir.read_array(path, np.float32, (2, 3), "run score.py again")
    )
    assert message.startswith(f"{path}: ")
    assert message.endswith("delete it and run score.py again")


def test_a_missing_array_and_a_folder_in_its_place_are_refused(tmp_path):
    def read(name):
        return lambda: run_dir.read_array(tmp_path / name, np.float32, (2, 3), "run score.py again")

    (tmp_path / "folder.npy").mkdir()
    assert "no such file; run score.py again" in refusal(tmp_path, read("a.npy"))
    assert "not a NumPy array" in refusal(tmp_path, read("folder.npy"))


@settings(max_examples=300)
@given(st.integers(0, len(npy(good)) - 1), st.integers(1, 255))
def test_any_one_damaged_byte_is_refused_or_harmless_to_type_and_shape(
    tmp_path_factory, place, flip
):
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    content = bytearray(npy(good))
    content[place] ^= flip
    path.write_bytes(content)
    try:
        read = run_dir.read_array(path, np.float32, (2, 3), "")
    except InputError:
        return
    assert (read.dtype, read.shape) == (np.float32, (2, 3))


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
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"hello"])
def test_damaged_masks_and_labels_are_refused_and_written_again_once_deleted(
    run, tiny, name, damage
):
    whole = files_of(run)
    (run / name).write_bytes(damage(whole[name]))
    message = refusal(run, lambda: prepare(run, tiny))
    assert f"{name}: truncated or not a NumPy array" in message
    assert message.endswith("delete it and run train.py again")
    (run / name).unlink()
    prepare(run, tiny)
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

    def killed(path, write, real=run_dir.write_whole):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        real(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "write_whole", killed)
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


def test_the_log_keeps_its_records_but_those_of_epochs_to_be_repeated(run):
    records = [record(1), record(2), record(1, first=2), record(3)]
    for line in records:
        run_dir.append_log(run, line)
    assert run_dir.read_log(run) == records
    run_dir.forget_log_after(run, 0, 1, 1)
    assert run_dir.read_log(run) == [record(1), record(1, first=2)]


def test_a_last_line_cut_short_is_left_out_and_makes_room_for_the_next(run):
    run_dir.append_log(run, record(1))
    with (run / run_dir.TRAIN_LOG).open("a") as file:
        file.write(json.dumps(record(2))[:20])
    assert run_dir.read_log(run) == [record(1)]
    run_dir.forget_log_after(run, 0, 1, 1)
    run_dir.append_log(run, record(2))
    assert run_dir.read_log(run) == [record(1), record(2)]


@pytest.mark.parametrize("content", [b"dear diary\n\xff\n", b"{}\n{}\n", b"3\n4\n", b"[\n]\n"])
def test_a_foreign_log_is_refused(run, tiny, content):
    (run / run_dir.TRAIN_LOG).write_bytes(content)
    message = refusal(run, lambda: prepare(run, tiny))
    assert "train_log.jsonl: line 1 is not one that training wrote; delete this file" in message


# Scores.


def test_new_scores_are_unwritten_and_writing_reaches_the_file(tmp_path):
    path = tmp_path / "scores.npy"
    scores = run_dir.open_scores(path, 4, E, 2)
    assert run_dir.unwritten(scores) == [0, 1, 2, 3]
    scores[1] = 7
    scores.flush()
    assert run_dir.unwritten(run_dir.open_scores(path, 4, E, 2)) == [0, 2, 3]
    assert (np.load(path)[1] == 7).all()


def test_scores_of_fewer_models_are_extended(tmp_path):
    path = tmp_path / "scores.npy"
    run_dir.open_scores(path, 2, E, 2)[:] = 7
    scores = run_dir.open_scores(path, 4, E, 2)
    assert run_dir.unwritten(scores) == [2, 3]
    assert (scores[:2] == 7).all()
    assert list(files_of(tmp_path)) == ["scores.npy"]


def test_scores_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "scores.npy"
    run_dir.open_scores(path, 4, E, 2)[:] = 7
    for shape in ((4, E + 1, 2), (4, E, 1), (2, E, 2)):
        message = refusal(tmp_path, lambda shape=shape: run_dir.open_scores(path, *shape))
        assert "delete it" in message


@pytest.mark.parametrize("length", [0, 5, 100, 200, -1])
def test_truncated_scores_are_refused_not_filled_up(tmp_path, length):
    path = tmp_path / "scores.npy"
    run_dir.open_scores(path, 4, E, 2)[:] = 7
    path.write_bytes(path.read_bytes()[:length])
    message = refusal(tmp_path, lambda: run_dir.open_scores(path, 4, E, 2))
    assert "truncated or not a NumPy array" in message


@pytest.fixture
def scored(run):
    run_dir.open_scores(run / run_dir.SCORES, 2, E, 2)[:] = np.arange(E)[:, np.newaxis]
    run_dir.open_scores(run / run_dir.LOGITS, 2, E, K)[:] = 1
    return run


def test_a_scored_run_gives_its_score_set(scored):
    found = run_dir.read_score_set(scored)
    assert found.block == 2
    assert found.scores.shape == (2, E, 2)
    assert found.logits.shape == (2, E, K)
    np.testing.assert_array_equal(found.keep, masks(2))
    np.testing.assert_array_equal(found.labels, LABELS)


def test_models_not_scored_yet_are_named_with_the_command_to_run(scored, tiny):
    command = f"run python score.py --run {scored}"
    rows = np.load(scored / run_dir.SCORES, mmap_mode="r+")
    rows[1, 3, 0] = np.nan
    message = refusal(scored, lambda: run_dir.read_score_set(scored))
    assert message.endswith(f"scores.npy: model 1 of 2 not scored yet; {command}")
    prepare(scored, with_train(tiny, models=6))
    message = refusal(scored, lambda: run_dir.read_score_set(scored))
    assert message.endswith(f"scores.npy: models 1–5 of 6 not scored yet; {command}")
    for name in (run_dir.LOGITS, run_dir.SCORES):
        (scored / name).unlink()
        message = refusal(scored, lambda: run_dir.read_score_set(scored))
        assert message.endswith(command)


def test_a_command_to_run_can_be_pasted(tmp_path, tiny):
    run = tmp_path / "my runs" / "it's"
    prepare(run, tiny)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    message = refusal(run, lambda: run_dir.read_score_set(run))
    assert message.endswith(f"""run python score.py --run '{tmp_path}/my runs/it'"'"'s'""")


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0–1"), ([0, 1, 2, 5], "0–2, 5"), ([1, 3, 4], "1, 3–4")],
)
def test_numbers_in_messages_are_ranges(numbers, text):
    assert run_dir.as_ranges(numbers) == text


def test_no_temporary_file_is_left(scored):
    assert not [name for name in os.listdir(scored) if name.startswith(".")]


def test_a_config_is_read_as_it_is_written(run, tiny):
    assert config.load(run / run_dir.CONFIG) == tiny
