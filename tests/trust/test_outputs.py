"""Predictions elsewhere are read as they were written, and what is damaged is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from lira_jax import storage
from lira_jax.config import INPUT_KINDS
from lira_jax.run import score_files
from lira_jax.trust import outputs
from tests.conftest import refusal
from tests.label_only.synthetic import write_run
from tests.trust.synthetic import made

MODELS, EXAMPLES, INPUTS, CLASSES = 4, 20, 10, 4
KINDS = {"zoo": (False, 0.0), "uniform": (False, 1.0), "test": (True, 0.0), "aa": (False, 1.0)}
MADE, HELD = made(
    models=MODELS, examples=EXAMPLES, inputs=INPUTS, classes=CLASSES, kinds=KINDS
)  # fmt: skip
assert MADE.fit is not None


def write(folder, kind):
    for name, array in {"labels": kind.labels, "samples": kind.samples}.items():
        storage.write_array(folder / f"{kind.name}_{name}.npy", array)
    told = outputs.record_of(kind.title, len(kind.labels), kind.scale, "0" * 64)
    storage.write_text(folder / f"{kind.name}.json", json.dumps(told))
    for name, logits in kind.logits.items():
        end = "" if name == "plain" else f"_{name}"
        storage.write_array(folder / f"{kind.name}{end}.npy", logits)
    settings = {"prior": 0.0, "samples": 3, "digest": "0" * 64}
    storage.write_text(folder / f"{kind.name}_probit.json", json.dumps(settings))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with all that scoring writes; not to be changed."""
    run = tmp_path_factory.mktemp("outputs") / "a run"
    write_run(run, HELD)
    folder = run / "trust"
    for kind in (*MADE.kinds, MADE.fit):
        write(folder, kind)
    for name, logits in MADE.candidates.items():
        storage.write_array(folder / f"candidates_{name}.npy", logits)
    storage.write_text(folder / "candidates_probit.json", "{}")
    (folder / ".lock-trust").write_bytes(b"")
    return run


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_all_that_was_written_is_read_in_the_order_of_tables(whole):
    found = outputs.read(whole, score_files.read_score_set(whole))
    assert [kind.name for kind in found.kinds] == ["test", "uniform", "aa", "zoo"]
    assert INPUT_KINDS[0] == "test"
    given = {kind.name: kind for kind in (*MADE.kinds, MADE.fit)}
    for kind in (*found.kinds, found.fit):
        expected = given[kind.name]
        assert (kind.title, kind.scale) == (expected.title, expected.scale)
        np.testing.assert_array_equal(kind.labels, expected.labels)
        np.testing.assert_array_equal(kind.samples, expected.samples)
        assert set(kind.logits) == {"plain", "probit", "sampled"}
        for name, logits in kind.logits.items():
            np.testing.assert_array_equal(logits, expected.logits[name])
            assert isinstance(logits, np.memmap)
    for name, logits in found.candidates.items():
        np.testing.assert_array_equal(logits, MADE.candidates[name])


def test_the_first_candidates_alone_are_all_but_canaries(whole):
    first = outputs.of_first(outputs.read(whole, HELD), 7)
    assert {one.shape for one in first.candidates.values()} == {(MODELS, 7, CLASSES)}
    assert len(first.kinds[0].labels) == INPUTS


def test_where_nothing_was_asked_there_is_nothing(run):
    shutil.rmtree(run / "trust")
    assert outputs.read(run, HELD) is None
    (run / "trust").mkdir()
    (run / "trust" / ".lock-trust").write_bytes(b"")
    assert outputs.read(run, HELD) is None


@pytest.mark.parametrize("name", ["zoo", "fit", "test_probit", "candidates_sampled", "zoo_labels"])
def test_what_was_made_and_is_gone_is_missed(run, name):
    folder = run / "trust"
    (folder / f"{name}.npy").unlink()
    for path in folder.glob("*.json"):
        storage.write_text(path, json.dumps(json.loads(path.read_text()) | {"whole": MODELS}))
    message = refusal(run, lambda: outputs.read(run, HELD))
    assert message.startswith(f"{folder}/{name}.npy: ")
    assert f"--run '{run}' --trust" in message or f"--run {run} --trust" in message


def test_inputs_of_another_run_are_refused(run):
    labels = np.load(run / "trust/zoo_labels.npy")
    about = {"run": "another", "holds": "zoo_labels", "digest": "0" * 64}
    storage.write_array(run / "trust/zoo_labels.npy", labels, about)
    message = refusal(run, lambda: outputs.read(run, HELD))
    assert "zoo_labels.npy: belongs to another run" in message


def test_what_is_not_whole_yet_is_not_there_yet(run):
    folder = run / "trust"
    (folder / "zoo.npy").unlink()  # its parts are still being made
    few = np.load(folder / "aa.npy")[: MODELS - 2]  # the run has got more models since
    storage.write_array(folder / "aa.npy", few)
    (folder / "uniform_sampled.npy").unlink()
    storage.write_array(folder / "test_probit.npy", MADE.kinds[2].logits["probit"][:2])
    storage.write_array(folder / "candidates_sampled.npy", MADE.candidates["sampled"][:2])
    (folder / "fit.npy").unlink()
    found = outputs.read(run, HELD)
    assert {kind.name: set(kind.logits) for kind in found.kinds} == {
        "uniform": {"plain"}, "test": {"plain", "sampled"},
    }  # fmt: skip
    assert found.fit is None
    assert set(found.candidates) == {"probit"}


def of_nan():
    logits = np.array(MADE.kinds[0].logits["plain"])
    logits[2, 5, 1] = np.nan
    return logits


LOGITS = np.zeros((MODELS, INPUTS, CLASSES), np.float32)
LABELS = np.zeros(INPUTS, np.int32)
RECORD = {"title": "t", "examples": INPUTS, "scale": 1.0, "digest": "0"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("zoo.json", b"{", "zoo.json: "),
        ("zoo.json", b"[]", "zoo.json: damaged (no table); delete"),
        ("zoo.json", b"\xff", "zoo.json: "),
        ("zoo.json", None, "zoo.json: damaged (not as scoring writes it); delete"),
        ("zoo.json", RECORD | {"examples": 0}, "zoo.json: damaged (not as scoring writes it)"),
        ("zoo.json", RECORD | {"examples": "10"}, "zoo.json: damaged (not as scoring writes it)"),
        ("zoo.json", RECORD | {"title": 3}, "zoo.json: damaged (not as scoring writes it)"),
        ("zoo.json", {"title": "t"}, "zoo.json: damaged (not as scoring writes it)"),
        ("zoo.json", RECORD | {"examples": 9}, "zoo.npy: holds float32 [4, 10, 4] instead"),
        ("zoo.npy", LOGITS[..., :3], "zoo.npy: holds float32 [4, 10, 3] instead"),
        ("zoo.npy", LOGITS.astype(np.float64), "zoo.npy: holds float64"),
        ("zoo.npy", b"\x93NUMPY", "zoo.npy: "),
        ("zoo.npy", np.zeros((MODELS + 2, INPUTS, CLASSES), "f4"),
         f"zoo.npy: holds {MODELS + 2} models, the run {MODELS}; delete it"),
        ("zoo.npy", of_nan(), "zoo.npy: damaged (not finite at model 2, input 5); delete"),
        ("zoo_sampled.npy", of_nan(), "zoo_sampled.npy: damaged (not finite at model 2, input 5)"),
        ("candidates_probit.npy", LOGITS, "candidates_probit.npy: holds float32 [4, 10, 4]"),
        ("zoo_labels.npy", None, "zoo_labels.npy: "),
        ("zoo_labels.npy", LABELS[1:], f"zoo_labels.npy: holds int32 [{INPUTS - 1}] instead of"),
        ("zoo_labels.npy", LABELS + CLASSES, f"not labels of {CLASSES} classes); delete"),
        ("zoo_labels.npy", LABELS - 2, f"not labels of {CLASSES} classes); delete"),
        ("zoo_labels.npy", np.arange(-1, INPUTS - 1, dtype="i4") % 3 - 1, "not labels of"),
        ("fit_labels.npy", LABELS - 1, f"fit_labels.npy: damaged (not labels of {CLASSES}"),
        ("zoo_samples.npy", None, "zoo_samples.npy: "),
        ("zoo_samples.npy", np.zeros((3, 8, 8, 1), np.uint8), "holds uint8 [3, 8, 8, 1] instead"),
    ],
)  # fmt: skip
def test_damage_is_refused_in_one_line(run, name, content, message):
    path = run / "trust" / name
    if content is None:
        path.unlink()
    elif isinstance(content, np.ndarray):
        storage.write_array(path, content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    refused = refusal(run, lambda: outputs.read(run, HELD))
    assert message in refused
    assert str(run / "trust") in refused


def test_a_changed_byte_is_noticed(run):
    path = run / "trust" / "uniform_probit.npy"
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    assert "uniform_probit.npy: damaged" in refusal(run, lambda: outputs.read(run, HELD))


def test_predictions_are_not_mixed_with_scores_behind_memguard(run):
    storage.write_text(run / "scores.json", json.dumps({"score.memguard": True}))
    message = refusal(run, lambda: score_files.read_score_set(run))
    assert message.startswith(f"{run / 'trust'}: made without score.memguard")
