"""Answers as the attack stage reads them from a run, and what it refuses."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from lira_jax import storage
from lira_jax.errors import InputError
from lira_jax.label_only import answers
from lira_jax.run import run_dir, score_files
from tests.conftest import refusal
from tests.label_only import synthetic


@pytest.fixture(scope="module")
def made():
    held = synthetic.score_set(models=6, examples=60)
    return held, synthetic.answers(held)


@pytest.fixture
def run(tmp_path, made):
    held, given = made
    synthetic.write_run(tmp_path / "run", held)
    synthetic.write_answers(tmp_path / "run", given)
    return tmp_path / "run"


def read(run):
    return answers.read(run, score_files.read_score_set(run))


def test_reads_what_was_written_models_first(run, made):
    given, found = made[1], read(run)
    assert (found.models, found.sources, found.block) == ((0, 2, 3, 4, 5), 1, 2)
    for name in ("keep", "labels", "scores", "logits"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    assert list(found.answers) == [name for name in answers.ARRAYS if name in given.answers]
    for name, one in given.answers.items():
        np.testing.assert_array_equal(found.answers[name].values, one.values)
    assert isinstance(found.answers["boundary"].values, np.memmap)
    assert found.answers["noise"].settings["copies"] == 20


def test_what_is_not_whole_is_not_there_yet(run):
    (run / "label_only/combined.npy").unlink()
    storage.write_array(run / "label_only/combined_parts/combined_00000-00009.npy", np.zeros(3))
    assert "combined" not in read(run).answers


@pytest.mark.parametrize("how", ["missing", "dangling", "a pipe"])
@pytest.mark.parametrize("name", ["correct", "boundary_queries", "features"])
def test_what_was_made_and_is_gone_is_missed(run, name, how):
    folder = run / "label_only"
    record = folder / f"{name.removesuffix('_queries')}.json"
    storage.write_text(record, json.dumps(json.loads(record.read_text()) | {"whole": 60}))
    path = folder / f"{name}.npy"
    path.unlink()
    if how == "dangling":
        path.symlink_to(folder / "nowhere")
    elif how == "a pipe":
        os.mkfifo(path)
    with pytest.raises(InputError, match=rf"{name}\.npy: is (missing|a link|a pipe)") as caught:
        read(run)
    assert f"run python score.py --run {run} --label-only again" in str(caught.value)


def test_answers_without_the_list_of_models_asked_are_refused(run):
    (run / "label_only/models.json").unlink()
    assert "models.json: damaged (missing, with" in refusal(run, lambda: read(run))


def test_answers_of_another_run_are_refused(run):
    path = run / "label_only/models.json"
    whole = path.read_text()
    storage.write_text(path, json.dumps(json.loads(whole) | {"run": "another"}))
    assert "models.json: belongs to another run" in refusal(run, lambda: read(run))
    storage.write_text(path, whole)
    array = np.load(run / "label_only/correct.npy")
    about = {"run": run_dir.identity(run), "holds": "correct", "models": [0, 2, 3, 4, 5]}
    right = about | {"settings": {"examples": 60}}
    storage.write_array(run / "label_only/correct.npy", array, right)
    assert read(run) is not None
    for key, value in (("run", "another"), ("holds", "rotation"), ("models", [0, 2, 3, 4, 1])):
        storage.write_array(run / "label_only/correct.npy", array, right | {key: value})
        assert "correct.npy: " in refusal(run, lambda: read(run))


def test_a_run_that_was_not_asked_has_no_answers(tmp_path, made):
    synthetic.write_run(tmp_path / "run", made[0])
    assert read(tmp_path / "run") is None
    storage.write_text(tmp_path / "run/label_only/models.json", '{"sources": [0], "targets": [2]}')
    assert read(tmp_path / "run") is None


def test_fewer_examples_may_have_been_asked_about(run, made):
    folder = run / "label_only"
    storage.write_array(folder / "boundary.npy", made[1].answers["boundary"].values[:, :40]
                        .swapaxes(0, 1).copy())  # fmt: skip
    record = json.loads((folder / "boundary.json").read_text()) | {"examples": 40}
    storage.write_text(folder / "boundary.json", json.dumps(record))
    (folder / "boundary_queries.npy").unlink()
    assert read(run).answers["boundary"].values.shape == (5, 40, 3)
    cut = answers.of_first(read(run), 50).answers
    assert cut["correct"].values.shape == (5, 50)
    assert cut["boundary"].values.shape == (5, 40, 3)


@pytest.mark.parametrize("name", ["models", "boundary"])
def test_refuses_a_damaged_record(run, name):
    for text in ("{", "[]", "{}", "\0"):
        storage.write_text(run / f"label_only/{name}.json", text)
        message = refusal(run, lambda: read(run))
        assert f"{name}.json" in message
        assert "score.py --label-only again" in message


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ({"sources": [0], "targets": [0, 2]}, "names a model twice"),
        ({"sources": [], "targets": [2]}, "no numbers of sources"),
        ({"sources": [0], "targets": [1, 2]}, "a target in the block of a source model"),
        ({"sources": [0], "targets": [6]}, "model 6, and the run has 6"),
        ({"sources": [0], "targets": ["2"]}, "no numbers of targets"),
        ({"sources": [0], "targets": [2, 3]}, "instead of float32 [60, 3]"),
    ],
)
def test_refuses_models_that_do_not_fit(run, record, word):
    storage.write_text(run / "label_only/models.json", json.dumps(record))
    assert word in refusal(run, lambda: read(run))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"examples": 0}, "examples = 0"),
        ({"examples": 61}, "examples = 61"),
        ({"examples": True}, "examples = True"),
        ({"rotations": 3}, "rotation.json: damaged (rotations = 3)"),
        ({"rotations": [1.0, "x", 8.0]}, "rotation.json: damaged (rotations = [1.0, 'x', 8.0])"),
        ({"rotations": [1.0, float("inf")]}, "rotation.json: damaged (rotations = [1.0, inf])"),
        ({"rotations": "148"}, "rotation.json: damaged (rotations = '148')"),
        ({"rotations": [1.0]}, "instead of float32 [60, 5, 3]"),
    ],
)
def test_refuses_settings_that_do_not_fit(run, change, word):
    path = run / "label_only/rotation.json"
    storage.write_text(path, json.dumps(json.loads(path.read_text()) | change))
    assert word in refusal(run, lambda: read(run))


def test_refuses_a_truncated_array_and_a_foreign_one(run):
    path = run / "label_only/boundary.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert "boundary.npy: damaged" in refusal(run, lambda: read(run))
    storage.write_array(path, np.zeros((60, 5), np.float32))
    message = refusal(run, lambda: read(run))
    assert "holds float32 [60, 5] instead of float32 [60, 5, 3]" in message
    assert message.endswith(f"run python score.py --run {run} --label-only again")


@pytest.mark.parametrize(
    ("name", "value"),
    [("boundary", np.nan), ("boundary", np.inf), ("boundary", -1.0), ("noise", 1.5),
     ("features", np.nan)],
)  # fmt: skip
def test_refuses_what_is_no_answer(run, made, name, value):
    array = made[1].answers[name].values.swapaxes(0, 1).copy()
    array[7, 0, 1] = value
    storage.write_array(run / f"label_only/{name}.npy", array)
    message = refusal(run, lambda: read(run))
    assert f"{name}.npy: {value} at example 7" in message


def test_refuses_so_few_examples_that_all_are_members(run, made):
    keep = made[1].keep[0]
    count = int(np.argmax(keep != keep[0]))
    folder = run / "label_only"
    storage.write_array(folder / "correct.npy", made[1].answers["correct"].values[:, :count]
                        .swapaxes(0, 1).copy())  # fmt: skip
    storage.write_text(folder / "correct.json", json.dumps({"examples": count}))
    message = refusal(run, lambda: read(run))
    assert "the source models trained on" in message
    assert "--label_only.examples 0" in message
