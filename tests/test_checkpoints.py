"""Checkpoints: what is restored is what was saved, or nothing; and what is left to train."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from lira_jax import checkpoints
from lira_jax.checkpoints import Group, plan, restore, save, saved_groups
from lira_jax.errors import InputError
from tests.conftest import files_of

rng = np.random.default_rng(0)
TREE = {
    "params": {"kernel": rng.normal(size=(2, 30, 40)).astype(np.float32)},
    "rest": {"mean": rng.normal(size=(2, 5)).astype(np.float32)},
    "step": np.arange(2, dtype=np.int32),
}
LIKE = {
    "params": {"kernel": np.empty((2, 30, 40), np.float32)},
    "rest": {"mean": np.empty((2, 5), np.float32)},
    "step": np.empty(2, np.int32),
}
GROUP = Group(4, 5, epoch=7)
FOLDER = "checkpoints/models_00004-00005"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    save(run, GROUP, TREE)
    return run


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def same(tree):
    for found, wanted in ((tree["params"], TREE["params"]), (tree["rest"], TREE["rest"])):
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])
    np.testing.assert_array_equal(tree["step"], TREE["step"])
    return True


def test_what_is_restored_is_what_was_saved_wherever_the_run_is_moved(run):
    before = files_of(run)
    assert saved_groups(run) == [GROUP]
    assert same(restore(run, GROUP, LIKE))
    assert files_of(run) == before


def test_a_relative_path_will_do(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert same(restore(run.relative_to(run.parent), GROUP, LIKE))


def test_a_newer_checkpoint_takes_the_place_of_the_older(run):
    newer = Group(4, 5, epoch=9)
    save(run, newer, LIKE | {"step": TREE["step"] + 1})
    assert saved_groups(run) == [newer]
    np.testing.assert_array_equal(restore(run, newer, LIKE)["step"], [1, 2])


def test_each_damaged_file_is_named_with_the_folder_to_delete(run, capfd):
    """Damage of every kind to every file, one at a time; standard error stays empty."""
    files = [path for path in sorted((run / FOLDER / "7").rglob("*")) if path.is_file()]
    assert len(files) > 5
    for path in files:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for damaged in (whole[: len(whole) // 2], bytes(flipped), whole + b"x", None):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            with pytest.raises(InputError) as caught:
                restore(run, GROUP, LIKE)
            message = str(caught.value)
            assert message.startswith(f"{run}/{FOLDER}/7: damaged or foreign checkpoint (")
            assert path.name in message
            assert message.endswith(f"delete {run}/{FOLDER} and run train.py again")
            path.write_bytes(whole)
    assert same(restore(run, GROUP, LIKE))
    assert capfd.readouterr().err == ""


def test_a_checkpoint_of_another_network_is_refused(run):
    for like in (
        LIKE | {"params": {"kernel": np.empty((2, 30, 41), np.float32)}},
        LIKE | {"params": {"weight": np.empty((2, 30, 40), np.float32)}},
        {"params": LIKE["params"]},
    ):
        with pytest.raises(InputError, match="damaged or foreign checkpoint"):
            restore(run, GROUP, like)


def test_a_foreign_record_of_checksums_is_refused_and_a_missing_one_passes(run):
    """Missing: the call that wrote the checkpoint was killed before the record."""
    path = run / FOLDER / checkpoints.CHECKSUMS
    for content in (b"", b"hello", b"[]", b"{}", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged or foreign checkpoint"):
            restore(run, GROUP, LIKE)
    path.unlink()
    assert same(restore(run, GROUP, LIKE))


def test_foreign_files_among_checkpoints_are_left_alone(run):
    root = run / checkpoints.CHECKPOINTS
    (root / ".DS_Store").touch()
    (root / "models_00000-00001").touch()
    (root / "models_00002-00003").mkdir()
    (root / "notes" / "3").mkdir(parents=True)
    assert saved_groups(run) == [GROUP]


# What is left to train. Only names of folders count here.


def begun(run, *groups):
    for group in groups:
        folder = f"models_{group.first:05d}-{group.last:05d}"
        (run / checkpoints.CHECKPOINTS / folder / str(group.epoch)).mkdir(parents=True)


def test_a_new_run_is_cut_into_groups(tmp_path):
    assert plan(tmp_path, 5, 9, 2) == ([], [Group(0, 1), Group(2, 3), Group(4, 4)])


def test_groups_keep_their_extent_and_epoch_whatever_the_size_is_now(tmp_path):
    begun(tmp_path, Group(0, 3, 9), Group(6, 7, 2))
    assert plan(tmp_path, 12, 9, 3) == (
        [Group(0, 3, 9)],
        [Group(4, 5), Group(6, 7, 2), Group(8, 10), Group(11, 11)],
    )


@pytest.mark.parametrize("group", [Group(2, 4, 9), Group(8, 9, 9), Group(3, 3, 1)])
def test_groups_that_overlap_or_reach_beyond_the_run_are_refused(tmp_path, group):
    begun(tmp_path, Group(0, 3, 9), group)
    with pytest.raises(InputError, match=r"delete that folder and run train.py again"):
        plan(tmp_path, 8, 9, 2)
