"""Checkpoints: what is restored is what was saved, or nothing; and what is left to train."""

from __future__ import annotations

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lira_jax import storage
from lira_jax.errors import InputError
from lira_jax.run import checkpoints
from lira_jax.run.checkpoints import Group, halve, plan, repair, restore, save, saved_groups
from tests.conftest import begin_run, files_of, refusal

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
GROUP = Group(4, 5, step=7)
FILE = "checkpoints/models_00004-00005_step_7.npz"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = begin_run(tmp_path_factory.mktemp("run"))
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


@pytest.mark.accelerator
def test_what_is_restored_is_what_was_saved_wherever_the_run_is_moved(run):
    before = files_of(run)
    assert saved_groups(run) == [GROUP]
    assert same(restore(run, GROUP, LIKE))
    assert files_of(run) == before


def test_a_relative_path_will_do(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert same(restore(run.relative_to(run.parent), GROUP, LIKE))


def test_a_newer_checkpoint_takes_the_place_of_the_older(run):
    newer = Group(4, 5, step=9)
    save(run, newer, LIKE | {"step": TREE["step"] + 1})
    assert saved_groups(run) == [newer]
    np.testing.assert_array_equal(restore(run, newer, LIKE)["step"], [1, 2])


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_damage_is_named_with_what_to_do(run, data):
    whole = (run / FILE).read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "longer", "missing"]))
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= data.draw(st.integers(1, 255))
    damaged = {"flip": bytes(flipped), "cut": whole[:place], "longer": whole + b"x"}
    if kind == "missing":
        (run / FILE).unlink()
    else:
        (run / FILE).write_bytes(damaged[kind])
    message = refusal(run, lambda: restore(run, GROUP, LIKE))
    assert message.startswith(f"{run}/{FILE}: ")
    assert message.endswith("run train.py with --repair True to train models 4–5 again")
    (run / FILE).write_bytes(whole)


def test_a_checkpoint_is_an_npz_that_needs_no_program_of_ours(run):
    with np.load(run / FILE) as file:
        assert sorted(file) == ["params/kernel", "rest/mean", "step"]
        np.testing.assert_array_equal(file["params/kernel"], TREE["params"]["kernel"])


@pytest.mark.accelerator
def test_bfloat16_and_other_types_come_back_as_they_were(tmp_path):
    tree = {"a": jnp.linspace(0, 1, 6, dtype=jnp.bfloat16).reshape(2, 3), "b": np.arange(2) > 0}
    save(begin_run(tmp_path), GROUP, tree)
    back = restore(tmp_path, GROUP, jax.eval_shape(lambda: tree))
    assert back["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(back["a"], tree["a"])
    np.testing.assert_array_equal(back["b"], tree["b"])


def test_a_checkpoint_of_another_network_is_refused(run):
    for like in (
        LIKE | {"params": {"kernel": np.empty((2, 30, 41), np.float32)}},
        LIKE | {"params": {"weight": np.empty((2, 30, 40), np.float32)}},
        {"params": LIKE["params"]},
    ):
        with pytest.raises(InputError, match="not of this network"):
            restore(run, GROUP, like)


def test_an_older_checkpoint_counts_until_the_newer_one_is_whole(run, monkeypatch):
    def killed(*arguments, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", killed)
        with pytest.raises(KeyboardInterrupt):
            save(run, Group(4, 5, 9), LIKE)
    assert saved_groups(run) == [GROUP]
    assert same(restore(run, GROUP, LIKE))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            save(run, Group(4, 5, 9), TREE)
    assert saved_groups(run) == [Group(4, 5, 9)]
    save(run, Group(4, 5, 11), TREE)
    assert list(files_of(run)) == ["checkpoints/models_00004-00005_step_11.npz", "config.toml"]


def test_a_disk_that_is_full_is_named_and_the_older_checkpoint_stays(run):
    """In a process of its own that may write no file over 4 KiB."""
    code = f"""
import resource, signal
import numpy as np
from pathlib import Path
from lira_jax.run import checkpoints
from lira_jax.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
tree = {{"x": np.random.default_rng(0).normal(size=(2, 10_000))}}
try:
    checkpoints.save(Path({str(run)!r}), checkpoints.Group(4, 5, 9), tree)
except InputError as error:
    print(error)
"""
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith(f"{run}/{FILE.replace('_7', '_9')}: cannot be written (")
    assert "check the path and the disk, then run the same command again" in outcome.stdout
    assert len(outcome.stdout.splitlines()) == 1
    assert saved_groups(run) == [GROUP]
    assert same(restore(run, GROUP, LIKE))


def test_repair_removes_what_is_damaged_in_its_share_and_nothing_else(run):
    save(run, Group(0, 1, 7), TREE)
    save(run, Group(2, 3, 7), TREE)
    for first in (0, 4):
        (run / f"checkpoints/models_{first:05d}-{first + 1:05d}_step_7.npz").write_text("hello")
    assert repair(run, range(2, 6), lambda group: LIKE) == [GROUP]
    assert saved_groups(run) == [Group(0, 1, 7), Group(2, 3, 7)]


def test_repair_removes_what_is_of_another_network(run):
    save(run, Group(2, 3, 7), {"params": TREE["params"]})
    assert repair(run, range(6), lambda group: LIKE) == [Group(2, 3, 7)]
    assert saved_groups(run) == [GROUP]


def test_a_checkpoint_of_another_run_or_of_other_models_is_refused_and_repaired(run, tmp_path):
    """Though each is whole, and its arrays have the shapes that are wanted."""
    other = begin_run(tmp_path / "other", seed=1)
    save(other, GROUP, TREE)
    save(run, Group(2, 3, 7), TREE)
    folder = run / checkpoints.CHECKPOINTS
    mine, theirs = folder / "models_00002-00003_step_7.npz", other / FILE
    for strange in (theirs.read_bytes(), (run / FILE).read_bytes()):
        mine.write_bytes(strange)
        message = refusal(run, lambda: restore(run, Group(2, 3, 7), LIKE))
        assert message.startswith(f"{mine}: ")
        assert message.endswith("run train.py with --repair True to train models 2–3 again")
        assert repair(run, range(6), lambda group: LIKE) == [Group(2, 3, 7)]
    assert saved_groups(run) == [GROUP]
    assert same(restore(run, GROUP, LIKE))


def test_a_checkpoint_of_an_earlier_version_which_tells_no_run_is_read(run):
    storage.write_checked(run / FILE, lambda file: file.write(storage.read_checked(run / FILE, "")))
    assert same(restore(run, GROUP, LIKE))


def test_nothing_is_saved_into_a_run_that_was_deleted(run):
    shutil.rmtree(run)
    message = refusal(None, lambda: save(run, GROUP, TREE))
    assert message.startswith(f"{run}: the run is gone (no config.toml): it was moved or deleted")
    assert not run.exists()


def test_a_halved_group_holds_what_the_whole_did(run):
    halve(run, GROUP, LIKE)
    assert saved_groups(run) == [Group(4, 4, 7), Group(5, 5, 7)]
    like = jax.tree.map(lambda leaf: leaf[:1], LIKE)
    for row, group in enumerate(saved_groups(run)):
        tree = restore(run, group, like)
        np.testing.assert_array_equal(tree["params"]["kernel"], TREE["params"]["kernel"][[row]])


def test_a_group_counts_until_both_its_halves_are_whole(run, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            halve(run, GROUP, LIKE)
    assert saved_groups(run) == [GROUP]
    assert plan(run, 6, 9, 2)[1] == [Group(0, 1), Group(2, 3), GROUP]


def test_foreign_files_among_checkpoints_are_left_alone(run):
    root = run / checkpoints.CHECKPOINTS
    (root / ".DS_Store").touch()
    (root / "models_00000-00001").mkdir()
    (root / "models_00002-00003_step_9.npz.bak").touch()
    assert saved_groups(run) == [GROUP]


# What is left to train. Only names of files count here.


def begun(run, *groups):
    for group in groups:
        path = run / checkpoints.CHECKPOINTS / f"{group.name}_step_{group.step}.npz"
        path.parent.mkdir(exist_ok=True)
        path.touch()


def test_a_new_run_is_cut_into_groups(tmp_path):
    assert plan(tmp_path, 5, 9, 2) == ([], [Group(0, 1), Group(2, 3), Group(4, 4)])


def test_groups_keep_their_extent_and_step_whatever_the_size_is_now(tmp_path):
    begun(tmp_path, Group(0, 3, 9), Group(6, 7, 2))
    assert plan(tmp_path, 12, 9, 3) == (
        [Group(0, 3, 9)],
        [Group(4, 5), Group(6, 7, 2), Group(8, 10), Group(11, 11)],
    )


@pytest.mark.parametrize("group", [Group(2, 4, 9), Group(7, 9, 9)])
def test_groups_that_overlap_or_reach_beyond_the_run_are_refused(tmp_path, group):
    begun(tmp_path, Group(0, 3, 9), group)
    with pytest.raises(InputError, match=r"delete that file and run train.py again"):
        plan(tmp_path, 8, 9, 2)


def test_a_share_has_its_own_models_and_the_groups_that_begin_in_it(tmp_path):
    begun(tmp_path, Group(0, 3, 9), Group(6, 9, 2))
    assert [plan(tmp_path, 12, 9, 3, share)[1] for share in (range(0, 4), range(4, 8))] == [
        [],
        [Group(4, 5), Group(6, 9, 2)],
    ]
    assert plan(tmp_path, 12, 9, 3, range(8, 12))[1] == [Group(10, 11)]
    assert plan(tmp_path, 12, 9, 3, range(8, 8))[1] == []


def test_groups_of_models_that_another_process_adds_are_left_alone(tmp_path):
    begun(tmp_path, Group(0, 3, 9), Group(8, 9, 9))
    assert plan(tmp_path, 8, 9, 2) == ([Group(0, 3, 9)], [Group(4, 5), Group(6, 7)])
