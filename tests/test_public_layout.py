"""Folders of the public LiRA code: what it wrote is what is read, and what is wrong is named."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile

import numpy as np
import pytest
from scipy.special import log_softmax

from lira_jax import public_layout
from lira_jax.score_set import ScoreSet, check
from tests.conftest import refusal

N, E, Q, K, MORE = 12, 10, 2, 3, 4


def labels_of(count):
    return np.arange(count) % K


def logits_of(model):
    return np.random.default_rng(model).normal(0, 3, (E, 1, Q, K)).astype(np.float32)


def phi_of(model):
    """φ = log p_y − log(1 − p_y) in float64, by another route than the module's."""
    log_p = log_softmax(logits_of(model)[:, 0].astype(np.float64), axis=2)
    of_label = np.take_along_axis(log_p, labels_of(E)[:, None, None], axis=2)[..., 0]
    return of_label - np.log(-np.expm1(of_label))


def keep_of(model):
    return np.random.default_rng(100 + model).random(E + MORE) < 0.5


@pytest.fixture
def folder(tmp_path):
    """Twelve experiments as that code leaves them, so that 10 sorts before 2 by name."""
    root = tmp_path / "cifar10"
    for model in range(N):
        below = root / f"experiment-{model}_{N}"
        for kind, array in (("scores", phi_of(model)), ("logits", logits_of(model))):
            (below / kind).mkdir(parents=True)
            np.save(below / kind / "0000000100.npy", array)
        np.save(below / "keep.npy", keep_of(model))
        (below / "hparams.json").write_text("{}")
        (below / "ckpt").mkdir()
    np.save(root / "x_train.npy", np.zeros(3))
    np.save(root / "y_train.npy", labels_of(E + MORE))
    return root


def test_what_the_public_code_wrote_is_read_in_order_of_models(folder):
    assert public_layout.is_layout(folder)
    found = check(public_layout.read(folder))
    np.testing.assert_array_equal(found.scores, [phi_of(n) for n in range(N)])
    assert found.scores.dtype == np.float64
    np.testing.assert_array_equal(found.keep, [keep_of(n)[:E] for n in range(N)])
    np.testing.assert_array_equal(found.labels, labels_of(E))
    np.testing.assert_array_equal(found.logits, [logits_of(n)[:, 0, 0] for n in range(N)])
    assert (found.block, found.source) == (None, str(folder))


def test_scores_and_logits_are_mapped_not_held_and_leave_no_file(folder, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    found = public_layout.read(folder)
    assert isinstance(found.scores, np.memmap)
    assert isinstance(found.logits, np.memmap)
    assert not found.scores.flags.writeable
    assert not list((tmp_path / "tmp").iterdir())


def test_scores_are_computed_from_logits_where_any_experiment_has_none(folder):
    shutil.rmtree(folder / f"experiment-3_{N}" / "scores")
    found = check(public_layout.read(folder))
    assert found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores, [phi_of(n) for n in range(N)], rtol=1e-5, atol=1e-5)
    (folder / "y_train.npy").unlink()
    message = refusal(folder, lambda: public_layout.read(folder))
    assert f"experiment-3_{N}: holds no scores/ of an epoch" in message
    assert "y_train.npy" in message


def test_without_labels_and_logits_scores_are_enough(folder):
    (folder / "y_train.npy").unlink()
    shutil.rmtree(folder / f"experiment-0_{N}" / "logits")
    found = check(public_layout.read(folder))
    assert (found.labels, found.logits) == (None, None)
    np.testing.assert_array_equal(found.scores, [phi_of(n) for n in range(N)])


def test_the_newest_epoch_that_all_have_is_read(folder):
    for model in range(N):
        scores = folder / f"experiment-{model}_{N}" / "scores"
        np.save(scores / "0000000020.npy", phi_of(model) - 2)
        np.save(scores / "0000000110.npy", phi_of(model) + 1)
        (scores / ".DS_Store").touch()
    (folder / f"experiment-5_{N}" / "scores" / "0000000110.npy").unlink()
    found = public_layout.read(folder)
    np.testing.assert_array_equal(found.scores, [phi_of(n) for n in range(N)])
    assert found.logits is not None
    (folder / f"experiment-6_{N}" / "scores" / "0000000100.npy").unlink()
    found = public_layout.read(folder)
    np.testing.assert_array_equal(found.scores[0], phi_of(0) - 2)
    assert found.logits is None  # they are of another epoch


def test_missing_experiments_are_told(folder):
    shutil.rmtree(folder / f"experiment-4_{N}")
    found = public_layout.read(folder)
    assert found.scores.shape == (N - 1, E, Q)
    np.testing.assert_array_equal(found.scores[4], phi_of(5))
    assert found.source == f"{folder} (11 of 12 experiments)"


def test_experiments_named_by_seed_and_scores_of_one_view_are_read(tmp_path):
    for seed in (7, 123, 20):
        below = tmp_path / f"experiment-{seed}"
        (below / "scores").mkdir(parents=True)
        np.save(below / "scores" / "0000000001.npy", np.full(E, seed, np.float16))
        np.save(below / "keep.npy", keep_of(seed).astype(int))
    found = public_layout.read(tmp_path)
    assert found.scores[:, 0, 0].tolist() == [7, 20, 123]
    assert isinstance(check(found), ScoreSet)


def test_folders_without_experiments_are_none(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "experiment", tmp_path / "none", tmp_path / "file"):
        assert not public_layout.is_layout(path)
        assert "holds no experiment-0_N" in refusal(tmp_path, lambda p=path: public_layout.read(p))


def resave(path, change):
    np.save(path, change(np.load(path)))


def special(path, kind):
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)


def with_nan(array):
    array[3] = np.nan
    return array


EPOCH = "0000000100.npy"


@pytest.mark.parametrize(
    ("break_", "words"),
    [
        (lambda f: (f / "experiment-2_12" / "keep.npy").unlink(), "2_12/keep.npy: no such file"),
        (
            lambda f: [shutil.rmtree(f / "experiment-2_12" / k) for k in ("scores", "logits")],
            "experiment-2_12: holds neither scores/ nor logits/",
        ),
        (
            lambda f: [
                (f / "y_train.npy").unlink(missing_ok=True),
                (f / "y_train.npy").symlink_to(f / "y_train.npy"),
            ],
            "y_train.npy: no such file",
        ),
        (
            lambda f: [
                shutil.rmtree(f / "experiment-2_12" / "logits"),
                (f / "experiment-2_12" / "logits").symlink_to("/dev/zero"),
            ],
            "experiment-2_12/logits: is not a folder",
        ),
        (lambda f: (f / "experiment-3_12").rename(f / "experiment-3_16"), "experiment-3_16"),
        (lambda f: (f / "experiment-3_12").rename(f / "experiment-12_12"), "numbered 0 … 11"),
        (lambda f: (f / "experiment-3_12").rename(f / "experiment-01_12"), "one of the two"),
        (
            lambda f: resave(f / "experiment-2_12" / "scores" / EPOCH, lambda x: x[:, :1]),
            f"experiment-2_12/scores/{EPOCH}: float64 of shape (10, 1)",
        ),
        (
            lambda f: resave(f / "experiment-2_12" / "scores" / EPOCH, with_nan),
            f"experiment-2_12/scores/{EPOCH}: nan at example 3",
        ),
        (
            lambda f: resave(f / "experiment-2_12" / "logits" / EPOCH, with_nan),
            f"experiment-2_12/logits/{EPOCH}: nan at example 3",
        ),
        (
            lambda f: resave(f / "experiment-2_12" / "scores" / EPOCH, lambda x: x > 0),
            "holds bool; scores are",
        ),
        (
            lambda f: resave(f / "experiment-2_12" / "logits" / EPOCH, lambda x: x[:, 0, 0]),
            "has shape (10, 3); logits are [examples, 1, views, classes]",
        ),
        (
            lambda f: resave(f / "experiment-2_12" / "keep.npy", lambda x: x[:5]),
            "experiment-2_12/keep.npy: is of 5 examples, the scores are of 10",
        ),
        (lambda f: resave(f / "experiment-2_12" / "keep.npy", lambda x: x + 1), "`keep` is "),
        (
            lambda f: resave(f / "y_train.npy", lambda x: x[:5]),
            "y_train.npy: is of 5 examples",
        ),
        (lambda f: resave(f / "y_train.npy", lambda x: x * 0.5), "labels are integers"),
        (
            lambda f: (f / "experiment-2_12" / "scores" / EPOCH).write_bytes(b"\x93NUMPY"),
            f"experiment-2_12/scores/{EPOCH}: truncated",
        ),
        (lambda f: (f / "experiment-2_12" / "keep.npy").write_bytes(b""), "keep.npy: truncated"),
        (
            lambda f: resave(f / "experiment-2_12" / "logits" / EPOCH, lambda x: x[:, :, :0]),
            "has shape (10, 0, 3), and so no logits",
        ),
        (
            lambda f: resave(f / "experiment-2_12" / "scores" / EPOCH, lambda x: x * 0 + 1e19),
            f"experiment-2_12/scores/{EPOCH}: 1e+19 at example 0",
        ),
        (
            lambda f: resave(f / "experiment-2_12" / "scores" / EPOCH, np.longdouble),
            "holds float128; scores are",
        ),
        (
            lambda f: (f / "experiment-2_12" / "keep.npy").write_bytes(
                (f / "experiment-2_12" / "keep.npy").read_bytes()[:-1] + b"\2"
            ),
            "`keep` is 2 at example 13; use 1",
        ),
        (lambda f: special(f / "experiment-2_12" / "keep.npy", "pipe"), "keep.npy: is a pipe"),
        (lambda f: special(f / "y_train.npy", "/dev/zero"), "y_train.npy: is a device"),
        (
            lambda f: special(f / "experiment-2_12" / "scores" / EPOCH, "/dev/zero"),
            f"{EPOCH}: is a device, not a file",
        ),
    ],
)
def test_what_is_wrong_is_named(folder, break_, words):
    break_(folder)
    assert words in refusal(folder, lambda: public_layout.read(folder))


def test_scores_cut_anywhere_are_refused(folder):
    path = folder / "experiment-2_12" / "scores" / EPOCH
    whole = path.read_bytes()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        assert "truncated" in refusal(folder, lambda: public_layout.read(folder))


def test_arrays_of_another_machine_are_read_as_the_same_numbers(folder):
    for model in range(N):
        below = folder / f"experiment-{model}_{N}"
        resave(below / "scores" / EPOCH, lambda x: x.astype(">f8"))
        resave(below / "logits" / EPOCH, lambda x: np.asfortranarray(x))
    resave(folder / "y_train.npy", lambda x: x.astype(">i2"))
    found = check(public_layout.read(folder))
    np.testing.assert_array_equal(found.scores, [phi_of(n) for n in range(N)])
    assert found.scores.dtype == np.float64
    np.testing.assert_array_equal(found.logits, [logits_of(n)[:, 0, 0] for n in range(N)])
    np.testing.assert_array_equal(found.labels, labels_of(E))


def test_logits_of_views_that_are_not_finite_are_refused_where_scores_are_made_of_them(folder):
    for model in range(N):
        shutil.rmtree(folder / f"experiment-{model}_{N}" / "scores")
    path = folder / f"experiment-2_{N}" / "logits" / EPOCH
    logits = np.load(path)
    logits[4, 0, 1, 2] = np.inf
    np.save(path, logits)
    assert "a logit of example 4" in refusal(folder, lambda: public_layout.read(folder))


def test_a_full_disk_is_named(folder, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    message = refusal(folder, lambda: public_layout.read(folder))
    assert "No space left on device" in message
    assert "TMPDIR" in message
