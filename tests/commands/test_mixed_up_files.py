"""Files of one run in the folder of another, and files under each other's names: refused, whichever
stage meets them, with words that lead back to the run as it was."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from lira_jax import storage
from lira_jax.commands import attack, score, train
from lira_jax.progress import Progress
from lira_jax.run import run_dir
from tests.commands.conftest import TRUST_CODE
from tests.commands.test_command_line import assert_same_run
from tests.conftest import files_of

pytestmark = pytest.mark.usefixtures("few_attacks", "sketched")
COMMANDS = {"train.py": train, "score.py": score}
ARRAYS = ("keep.npy", "labels.npy", "scores.npy", "logits.npy", "merlin.npy", "gradient_norm.npy")
ALL_SCORES = ("--score.noisy_queries", 2, "--score.gradient_norm", True)


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """The run of four models, with all that score.py can make of it."""
    run = shutil.copytree(made, tmp_path_factory.mktemp("whole") / "run")
    score.main(["--run", str(run), TRUST_CODE, *map(str, ALL_SCORES)])
    return run


@pytest.fixture(scope="module")
def other(whole, toml, tmp_path_factory):
    """The same of another seed."""
    run = tmp_path_factory.mktemp("other") / "run"
    train.main([str(toml), "--run", str(run), "--seed", "4"])
    score.main(["--run", str(run), TRUST_CODE, *map(str, ALL_SCORES)])
    return run


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def follow(call, run):
    """Do what a refusal says: delete what it names, and run the commands."""

    def follow(message):
        path = Path(message.split(": ")[0])
        if deleted := re.search(
            r"delete (it|[\w.]+(?:(?:, | and )[\w.]+)*)(?: there)? and", message
        ):
            words = [path.name] if deleted[1] == "it" else re.split(r", | and ", deleted[1])
            for name in words:
                storage.remove((path if path.is_dir() else path.parent) / name)
        commands = re.findall(r"(?:run|give) (?:python )?(train\.py|score\.py)([^;,]*)", message)
        assert commands, message
        name, words = commands[0]
        options = re.findall(r"(--(?!run)[\w.]+) ([\w.]+)", words)
        options = [word for option in options for word in option]
        outcome = call(COMMANDS[name], "--run", run, *options)
        assert outcome.code in (0, 2), outcome.err
        return outcome

    return follow


def healed(call, follow, run, message):
    """Follow refusals until the run can be attacked; how many it took."""
    for taken in range(1, 8):
        outcome = follow(message)
        if outcome.code == 0:
            outcome = call(score, "--run", run, *ALL_SCORES)
        if outcome.code == 0:
            outcome = call(attack, "--run", run)
        if outcome.code == 0:
            return taken
        message = outcome.err.removeprefix("error: ").strip()
    raise AssertionError(f"no end of refusals: {message}")


def assert_as_before(run, whole):
    assert_same_run(run, whole)
    for name in ("merlin.npy", "gradient_norm.npy"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_another_run_is_refused_and_made_again(
    run, whole, other, refused, call, follow, name
):
    shutil.copy(other / name, run / name)
    message = refused(attack, "--run", run)
    assert message.startswith(f"{run}/{name}: belongs to another run than the config.toml of this")
    healed(call, follow, run, message)
    assert_as_before(run, whole)


def test_a_configuration_of_another_run_is_refused_by_all_stages_and_repairs_nothing(
    run, whole, other, refused
):
    shutil.copy(other / "config.toml", run / "config.toml")
    for command, *words in (
        (attack,),
        (score,),
        (train,),
        (train, "--repair"),
        (score, "--repair"),
    ):
        message = refused(command, "--run", run, *words)
        assert message.startswith(f"{run}/config.toml: is of another run than keep.npy and labels")
    shutil.copy(whole / "config.toml", run / "config.toml")
    assert_as_before(run, whole)


@pytest.mark.parametrize("edit", [("seed = 3", "seed = 4"), ("epochs = 4", "epochs = 5")])
def test_a_configuration_that_was_edited_is_refused(run, refused, edit):
    path = run / "config.toml"
    path.write_text(path.read_text().replace(*edit))
    assert "config.toml: is of another run than" in refused(attack, "--run", run)


def test_arrays_of_one_run_under_each_others_names_are_refused(run, whole, refused, call, follow):
    shutil.copy(whole / "merlin.npy", run / "gradient_norm.npy")
    message = refused(attack, "--run", run)
    assert "gradient_norm.npy: its holds are merlin, not gradient_norm" in message
    healed(call, follow, run, message)
    assert_as_before(run, whole)


def test_noisy_queries_of_other_settings_than_their_record_tells_are_refused(run, refused):
    path = run / "merlin.json"
    path.write_text(path.read_text().replace("0.02", "0.03"))
    message = refused(attack, "--run", run)
    assert "merlin.npy: made with" in message
    assert "put the right one back, or delete both and run score.py" in message


def test_a_checkpoint_of_another_run_is_refused_and_trained_again(
    run, whole, other, refused, call, follow
):
    name = "checkpoints/models_00000-00001_step_20.npz"
    shutil.copy(other / name, run / name)
    (run / "scores.npy").unlink()
    message = refused(score, "--run", run)
    assert message.startswith(f"{run}/{name}: belongs to another run than")
    healed(call, follow, run, message)
    assert_as_before(run, whole)


def test_checkpoints_of_two_groups_that_changed_names_are_refused_and_trained_again(
    run, whole, refused, call, follow
):
    names = [f"checkpoints/models_{first}_step_20.npz" for first in ("00000-00001", "00002-00003")]
    for name, now in zip(names, reversed(names), strict=True):
        shutil.copy(whole / name, run / now)
    (run / "scores.npy").unlink()
    message = refused(score, "--run", run)
    assert message.startswith(f"{run}/{names[0]}: ")
    healed(call, follow, run, message)
    assert_as_before(run, whole)


def test_a_part_under_the_name_of_other_models_is_refused(run, refused, call, follow, whole):
    parts = run / "score_parts"
    for name in ("scores", "logits"):
        (run / f"{name}.npy").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "remove", lambda path: None)
        patch.setattr("lira_jax.run.parts.remove", lambda path: None)  # the parts stay
        assert call(score, "--run", run).code == 0
    for name in ("scores", "logits"):
        (run / f"{name}.npy").unlink()
        first, second = sorted(parts.glob(f"{name}_*"))[:2]
        shutil.copy(second, first)
    message = refused(score, "--run", run)
    assert "its rows are [2, 3], not [0, 1]" in message
    healed(call, follow, run, message)
    assert_as_before(run, whole)


@pytest.mark.parametrize("name", ["merlin.npy", "gradient_norm.npy"])
@pytest.mark.parametrize("how", ["missing", "dangling"])
def test_what_was_made_and_is_gone_is_missed(run, whole, refused, call, follow, name, how):
    (run / name).unlink()
    if how == "dangling":
        (run / name).symlink_to(run / "nowhere")
    message = refused(attack, "--run", run)
    assert message.startswith(f"{run}/{name}: is ")
    healed(call, follow, run, message)
    assert_as_before(run, whole)


def test_an_array_of_another_length_than_its_header_says_is_refused_though_its_checksum_is_right(
    run, refused
):
    """Or the checksum itself would be read as scores."""
    path = run / "scores.npy"
    array = np.load(path)
    longer = np.lib.format.header_data_from_array_1_0(array)
    longer["shape"] = (array.shape[0] + 1, *array.shape[1:])

    def write(file):
        np.lib.format.write_array_header_1_0(file, longer)
        file.write(array.tobytes())
        file.write(bytes(array[0].nbytes - 73))

    storage.write_checked(path, write)
    assert "scores.npy: damaged: its array is of" in refused(attack, "--run", run)


# Runs of earlier versions, whose files say nothing.


@pytest.fixture
def old(run):
    """The run as earlier versions wrote it."""
    for name in ARRAYS:
        storage.write_array(run / name, np.load(run / name))
    for path in (run / "checkpoints").iterdir():
        content = storage.read_checked(path, "")
        storage.write_checked(path, lambda file, content=content: file.write(content))
    return run


def test_a_run_of_an_earlier_version_is_read_and_says_so(old, whole, call):
    code, _, err = call(attack, "--run", old)
    assert code == 0
    assert f"{old}: written by an earlier version, so that it does not say which run it" in err
    assert "to: gradient_norm.npy, keep.npy, labels.npy, logits.npy, merlin.npy, scores.npy" in err
    assert call(train, "--run", old).code == call(score, "--run", old).code == 0
    figures = [
        (call(attack, "--run", folder, "--out", folder / "out"), (folder / "out/table.csv"))[1]
        for folder in (old, shutil.copytree(whole, old.parent / "new"))
    ]
    assert figures[0].read_bytes() == figures[1].read_bytes()


def test_masks_of_another_seed_in_an_earlier_run_are_refused_and_drawn_again(
    old, other, refused, call, follow
):
    keep = np.load(old / "keep.npy")
    storage.write_array(old / "keep.npy", np.load(other / "keep.npy"))
    message = refused(attack, "--run", old)
    assert message.startswith(f"{old}/keep.npy: masks are not those of this run's seed")
    healed(call, follow, old, message)
    np.testing.assert_array_equal(np.load(old / "keep.npy"), keep)


@pytest.mark.parametrize("name", ["scores.npy", "logits.npy"])
def test_scores_in_an_earlier_run_that_are_not_those_of_the_logits_are_refused_and_made_again(
    old, whole, other, refused, call, follow, name
):
    storage.write_array(old / name, np.load(other / name))
    message = refused(attack, "--run", old)
    assert message.startswith(
        f"{old}: scores.npy is not what logits.npy and labels.npy give, first"
    )
    healed(call, follow, old, message)
    np.testing.assert_array_equal(np.load(old / name), np.load(whole / name))


def test_labels_in_an_earlier_run_that_are_not_those_of_the_scores_are_refused(old, refused):
    storage.write_array(old / "labels.npy", np.load(old / "labels.npy")[::-1].copy())
    message = refused(attack, "--run", old)
    assert "scores.npy is not what logits.npy and labels.npy give" in message


def test_a_checkpoint_of_another_network_in_an_earlier_run_is_refused_and_trained_again(
    old, whole, refused, call, follow
):
    path = old / "checkpoints/models_00000-00001_step_20.npz"
    storage.write_checked(path, lambda file: np.savez(file, other=np.zeros(3)))
    for name in ("scores.npy", "logits.npy"):
        (old / name).unlink()
    message = refused(score, "--run", old)
    assert "not of this network" in message
    healed(call, follow, old, message)
    np.testing.assert_array_equal(np.load(old / "scores.npy"), np.load(whole / "scores.npy"))


# Software.


def test_other_software_is_told_once_and_kept_for_each_group(
    made, toml, call, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    assert call(train, toml, "--run", run, "--train.models", 2).code == 0
    begun = (run / "config.toml").read_text()
    monkeypatch.setattr(np, "__version__", "99.0.0")
    code, out, _ = call(train, toml, "--run", run)
    assert code == 0
    told = [line for line in out.splitlines() if "goes on with other software" in line]
    assert len(told) == 1
    assert re.search(r"\(numpy [\d.]+ → 99\.0\.0\)", told[0])
    assert (run / "config.toml").read_text() == begun.replace("models = 2", "models = 4")
    assert list(run_dir.trained_with(run).values()) == [[0, 1], [2, 3]]
    assert call(score, "--run", run).code == 0
    assert call(attack, "--run", run).code == 0
    report = (run / "attack/report.html").read_text()
    assert re.search(r"models 0–1: [^;]*numpy [^;]*; models 2–3: [^;]*numpy 99\.0\.0", report)
    assert files_of(run / "checkpoints").keys() == files_of(made / "checkpoints").keys()


# A run that goes away.


@pytest.mark.parametrize("command", [train, score])
def test_a_run_that_is_deleted_under_a_stage_is_said_to_be_gone_and_not_begun_again(
    made, toml, call, tmp_path, monkeypatch, command
):
    run = tmp_path / "run"
    words = [toml] if command is train else []
    if command is score:
        shutil.copytree(made, run)
        for name in ("scores.npy", "logits.npy"):
            (run / name).unlink()

    def delete(*_):
        shutil.rmtree(run, ignore_errors=True)

    monkeypatch.setattr(Progress, "advance", delete)
    monkeypatch.setattr(Progress, "warm_up", delete)
    code, _, err = call(command, *words, "--run", run)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: {run}: is gone: deleted or moved while this ")
    assert not run.exists()


# What a review found.


def test_a_configuration_of_another_run_is_found_by_checkpoints_where_masks_are_gone(
    run, whole, other, refused
):
    """And nothing that was trained is thrown away."""
    shutil.copy(other / "config.toml", run / "config.toml")
    (run / "keep.npy").unlink()
    for words in ((), ("--repair",)):
        message = refused(train, "--run", run, *words)
        assert message.startswith(f"{run}/config.toml: is of another run than labels.npy and check")
    shutil.copy(whole / "config.toml", run / "config.toml")


def test_a_run_that_lost_its_configuration_is_told_so_and_not_begun_anew(run, refused, toml):
    (run / "config.toml").unlink()
    for command, *words in ((attack,), (score,), (train, toml)):
        message = refused(command, *words, "--run", run)
        assert "holds keep.npy and labels.npy and checkpoints, but no config.toml" in message


def test_a_checkpoint_that_says_nothing_is_scored_with_a_word(run, other, call):
    name = "checkpoints/models_00000-00001_step_20.npz"
    content = storage.read_checked(other / name, "")
    storage.write_checked(run / name, lambda file: file.write(content))
    (run / "scores.npy").unlink()
    code, out, _ = call(score, "--run", run)
    assert code == 0
    assert (
        f"{run}: written by an earlier version, so that nothing tells whose it is: 1 files" in out
    )


@pytest.mark.parametrize(
    "name",
    [
        "score_parts/scores_00004-99999999999.npy",
        "checkpoints/models_00002-300000000_step_1.npz",
    ],
)
def test_a_name_that_claims_too_much_costs_nothing(run, call, name):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).touch()
    for command in (attack, score):
        assert call(command, "--run", run).code == 0


def test_scores_of_no_view_are_refused(old, refused):
    storage.write_array(old / "scores.npy", np.zeros((4, 120, 0), np.float32))
    assert "scores.npy: holds [4, 120, 0], no scores" in refused(attack, "--run", old)


def test_results_are_not_written_through_a_link_of_a_run(run, refused, call, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (run / "attack").symlink_to(victim)
    assert "attack: is a link; if you trust" in refused(attack, "--run", run)
    assert call(attack, "--run", run, "--out", victim).code == 0  # as the message says


@pytest.mark.parametrize(
    "name", ["attack/.lock-attack", "attack/.unfinished-0123456789ab-x", ".lock-score"]
)
def test_pipes_in_place_of_our_own_files_do_not_hang(run, call, name):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    code, _, err = call(score if "score" in name else attack, "--run", run)
    assert code == (0 if "unfinished" in name else 2), err


def test_a_lock_is_taken_through_no_link(run, refused, tmp_path):
    (run / ".lock-score").unlink()
    (run / ".lock-score").symlink_to(tmp_path / "outside")
    assert ".lock-score: " in refused(score, "--run", run)
    assert not (tmp_path / "outside").exists()


def test_files_of_others_are_not_swept(run, call, tmp_path):
    home = tmp_path / "home"
    (home / "other").mkdir(parents=True)
    for path in (home / ".unfinished-novel.txt", home / "other/.unfinished-0123456789ab-x"):
        path.write_text("chapter 1")
    assert call(attack, "--run", run, "--out", home).code == 0
    assert (home / ".unfinished-novel.txt").exists()
    assert (home / "other/.unfinished-0123456789ab-x").exists()


def test_repair_removes_nothing_for_lack_of_memory(run, whole, call, monkeypatch):
    def nothing_left(*_, **__):
        raise MemoryError("out of memory")

    (run / "scores.npy").unlink()
    before = files_of(run / "checkpoints")
    monkeypatch.setattr(np, "load", nothing_left)
    code, _, err = call(train, "--run", run, "--repair")
    assert code == 2
    assert "not enough memory" in err
    assert files_of(run / "checkpoints") == before
