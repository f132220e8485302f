"""Products of scoring: parts come together, settings are checked, and damage is told and mended."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import shutil
from contextlib import nullcontext

import numpy as np
import pytest

from lira_jax import storage
from lira_jax.analysis import analyse
from lira_jax.config import ScoreConfig
from lira_jax.errors import InputError
from lira_jax.run import parts, run_dir, score_files
from lira_jax.run.parts import Product
from tests.conftest import files_of, refusal, with_train
from tests.run.test_run_dir import LABELS, E, K, masks, prepare

PHI = score_files.phi(2, K)
MERLIN, NORM = score_files.merlin(100, 0.02), score_files.gradient_norm()


@pytest.fixture
def run(tmp_path, tiny):
    """A run of two models that is prepared, not trained."""
    prepare(tmp_path / "run", tiny)
    return tmp_path / "run"


def rows(models, value=0):
    """φ and logits of some models, each row telling its model."""
    number = np.array(models, np.float32)[:, None, None] + value
    of_label = (np.arange(K) == LABELS[:, None]) * (number + np.float32(np.log(K - 1)))
    return np.full((len(models), E, 2), number), of_label.astype(np.float32)


def column(models, value=0.0):
    return np.repeat(np.array(models, np.float32)[:, None] / 10 + value, E, axis=1)


def scored(run):
    return parts.made(run, PHI, 9, E)


def assemble(run, models):
    return parts.assemble(run, PHI, models, E)


def test_scores_in_parts_come_together_in_order_of_models(run):
    parts.write_part(run, PHI, 2, *rows([2, 3, 4]))
    assert scored(run).rows == {2, 3, 4}
    assert assemble(run, 6) == [0, 1, 5]
    parts.write_part(run, PHI, 5, *rows([5]))
    parts.write_part(run, PHI, 0, *rows([0, 1]))
    assert assemble(run, 6) == []
    phi, logits = rows(range(6))
    np.testing.assert_array_equal(np.load(run / "scores.npy"), phi)
    np.testing.assert_array_equal(np.load(run / "logits.npy"), logits)
    assert not (run / score_files.SCORE_PARTS).exists()
    assert scored(run).rows == set(range(6))
    before = files_of(run)
    assert assemble(run, 6) == []
    assert files_of(run) == before


def test_scores_of_more_models_keep_the_first(run):
    parts.write_part(run, PHI, 0, *rows([0, 1], 100))
    assert assemble(run, 2) == []
    parts.write_part(run, PHI, 2, *rows([2, 3]))
    assert scored(run).rows == {0, 1, 2, 3}
    assert assemble(run, 4) == []
    phi = np.load(run / "scores.npy")
    assert phi[:, 0, 0].tolist() == [100, 101, 2, 3]


def killed_after(monkeypatch, writes, real=storage.write_whole):
    """Let so many files be written, and be killed before the next."""
    left = iter(range(writes))

    def write_whole(path, write):
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(path, write)

    monkeypatch.setattr(storage, "write_whole", write_whole)


@pytest.mark.parametrize(
    ("product", "files", "writes"),
    # Two parts, of two files each or one; the settings, the files of all, and that they are whole.
    [(PHI, 8, n) for n in range(9)] + [(MERLIN, 5, n) for n in range(6)],
)
def test_scoring_killed_between_any_two_files_goes_on_to_the_same(
    run, product, files, writes, monkeypatch
):
    def given(models):
        return rows(models) if product is PHI else [column(models)]

    whole = shutil.copytree(run, run.with_name("whole"))
    parts.write_part(whole, product, 0, *given(range(4)))
    parts.assemble(whole, product, 4, E)

    def go_on():
        for first in (0, 2):
            if first not in parts.made(run, product, 9, E).rows:
                parts.write_part(run, product, first, *given([first, first + 1]))
        assert parts.assemble(run, product, 4, E) == []

    with monkeypatch.context() as patch:
        killed_after(patch, writes)
        with pytest.raises(KeyboardInterrupt) if writes < files else nullcontext():
            go_on()
    go_on()
    assert files_of(run) == files_of(whole)


def test_two_shards_that_put_the_parts_together_at_once_write_the_same(run, monkeypatch):
    """The other one does it all while this one is at its first row, and removes the parts."""
    parts.write_part(run, PHI, 0, *rows([0, 1]))
    parts.write_part(run, PHI, 2, *rows([2, 3]))
    real, calls = parts.write_rows, []

    def write_rows(path, dtype, shape, parts, about):
        calls.append(path.name)
        if len(calls) == 1:
            assert assemble(run, 4) == []
        real(path, dtype, shape, parts, about)

    monkeypatch.setattr(parts, "write_rows", write_rows)
    assert assemble(run, 4) == []
    assert calls == ["logits.npy", "logits.npy", "scores.npy"]
    np.testing.assert_array_equal(np.load(run / "scores.npy"), rows(range(4))[0])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["scores.npy", "logits.npy"])
def test_damaged_scores_are_refused_and_scored_anew_on_request(run, name):
    parts.write_part(run, PHI, 0, *rows([0, 1]))
    assemble(run, 2)
    flip(run / name)
    message = refusal(run, lambda: scored(run))
    assert message.startswith(f"{run}/{name}: damaged: its length or checksum")
    assert message.endswith("delete it and run score.py again, or give score.py --repair True")
    assert name in refusal(run, lambda: score_files.read_score_set(run))
    assert parts.made(run, PHI, 9, E, repair=True).rows == set()


@pytest.mark.parametrize("kind", ["scores", "logits"])
def test_a_damaged_part_is_refused_and_scored_anew_on_request(run, kind):
    parts.write_part(run, PHI, 0, *rows([0, 1]))
    parts.write_part(run, PHI, 2, *rows([2, 3]))
    flip(run / score_files.SCORE_PARTS / f"{kind}_00002-00003.npy")
    assert f"{kind}_00002-00003.npy: damaged" in refusal(run, lambda: scored(run))
    with pytest.raises(InputError, match=f"{kind}_00002-00003.npy: damaged"):
        assemble(run, 4)
    assert parts.made(run, PHI, 9, E, repair=True).rows == {0, 1}
    parts.write_part(run, PHI, 2, *rows([2, 3]))
    assert assemble(run, 4) == []


def test_scores_of_other_views_or_examples_are_refused(run):
    parts.write_part(run, PHI, 0, *rows([0, 1]))
    message = refusal(run, lambda: parts.made(run, score_files.phi(18, K), 9, E))
    assert "holds 2 views, not score.views = 18; give --score.views 2" in message
    assert "delete it" in refusal(run, lambda: parts.made(run, PHI, 9, E + 1))
    assemble(run, 2)
    message = refusal(run, lambda: parts.made(run, score_files.phi(18, K), 9, E))
    assert "scores.npy: holds 2 views, not score.views = 18; give --score.views 2" in message


@pytest.fixture
def whole(run):
    parts.write_part(run, PHI, 0, *rows([0, 1]))
    assemble(run, 2)
    return run


def test_a_scored_run_gives_its_score_set(whole):
    found = score_files.read_score_set(whole)
    assert found.block == 2
    assert found.scores.shape == (2, E, 2)
    assert found.logits.shape == (2, E, K)
    np.testing.assert_array_equal(found.keep, masks(2))
    np.testing.assert_array_equal(found.labels, LABELS)


def test_models_not_scored_yet_are_named_with_the_command_to_run(whole, tiny):
    command = f"run python score.py --run {whole}"
    prepare(whole, with_train(tiny, models=6))
    message = refusal(whole, lambda: score_files.read_score_set(whole))
    assert message.endswith(f"scores.npy: models 2–5 of 6 not scored yet; {command}")
    parts.write_part(whole, PHI, 2, *rows([2, 3, 4]))
    message = refusal(whole, lambda: score_files.read_score_set(whole))
    assert message.endswith(f"scores.npy: model 5 of 6 not scored yet; {command}")
    parts.write_part(whole, PHI, 5, *rows([5]))
    message = refusal(whole, lambda: score_files.read_score_set(whole))
    assert message.endswith(f"all models are scored, but not in one file yet; {command}")
    (whole / score_files.SCORES).unlink()
    message = refusal(whole, lambda: score_files.read_score_set(whole))
    assert message.endswith(f"models 0–1 of 6 not scored yet; {command}")
    shutil.rmtree(whole / score_files.SCORE_PARTS)
    message = refusal(whole, lambda: score_files.read_score_set(whole))
    assert message.endswith(f"scores.npy: no such file; {command}")


def test_a_command_to_run_can_be_pasted(tmp_path, tiny):
    run = tmp_path / "my runs" / "it's"
    prepare(run, tiny)
    message = refusal(run, lambda: score_files.read_score_set(run))
    assert message.endswith(f"""run python score.py --run '{tmp_path}/my runs/it'"'"'s'""")


# Arrays that not every run has.


@pytest.mark.parametrize("product", [MERLIN, NORM])
def test_an_optional_array_comes_together_and_into_the_score_set(whole, product):
    (name,) = product.arrays
    before = files_of(whole)
    assert getattr(score_files.read_score_set(whole), name) is None
    parts.write_part(whole, product, 1, column([1]))
    assert parts.assemble(whole, product, 2, E) == [0]
    assert getattr(score_files.read_score_set(whole), name) is None
    parts.write_part(whole, product, 0, column([0]))
    assert parts.assemble(whole, product, 2, E) == []
    np.testing.assert_array_equal(getattr(score_files.read_score_set(whole), name), column([0, 1]))
    after = files_of(whole)
    assert after.keys() - before.keys() == {f"{name}.npy", product.record}
    assert {path: after[path] for path in before} == before


def test_an_optional_array_of_fewer_models_than_the_run_is_left_out(whole, tiny):
    parts.write_part(whole, NORM, 0, column([0, 1]))
    parts.assemble(whole, NORM, 2, E)
    prepare(whole, with_train(tiny, models=4))
    parts.write_part(whole, PHI, 2, *rows([2, 3]))
    assemble(whole, 4)
    assert score_files.read_score_set(whole).gradient_norm is None
    parts.write_part(whole, NORM, 2, column([2, 3]))
    assert parts.assemble(whole, NORM, 4, E) == []
    np.testing.assert_array_equal(score_files.read_score_set(whole).gradient_norm, column(range(4)))


def test_noisy_queries_of_other_settings_are_refused_by_name_and_parts_of_them_are_not_used(run):
    parts.write_part(run, score_files.merlin(50, 0.02), 0, column([0, 1], 0.5))
    assert parts.made(run, MERLIN, 2, E).rows == set()
    parts.write_part(run, MERLIN, 0, column([0, 1]))
    assert parts.assemble(run, MERLIN, 2, E) == []
    np.testing.assert_array_equal(np.load(run / "merlin.npy"), column([0, 1]))
    assert not (run / MERLIN.parts).exists()
    for other in (score_files.merlin(50, 0.02), score_files.merlin(100, 0.1)):
        for repair in (False, True):
            ask = functools.partial(parts.made, run, other, 2, E, repair=repair)
            message = refusal(run, ask)
            assert "merlin.npy: made with score.nois" in message
            assert (
                "delete merlin.json, merlin.npy and merlin_parts there to make it anew" in message
            )
    (run / "merlin.npy").unlink()
    assert parts.made(run, score_files.merlin(50, 0.02), 2, E).rows == set()


@pytest.mark.parametrize("content", [None, "", "{}", '{"score.noise": 0.02}', "[1]"])
def test_noisy_queries_of_unknown_settings_are_not_used(run, content):
    parts.write_part(run, MERLIN, 0, column([0, 1]))
    parts.assemble(run, MERLIN, 2, E)
    (run / MERLIN.record).unlink() if content is None else (run / MERLIN.record).write_text(content)
    message = refusal(run, lambda: parts.made(run, MERLIN, 2, E))
    assert "merlin.json" in message
    assert "give score.py --score.noisy_queries 100 --score.noise 0.02 --repair True" in message
    assert parts.made(run, MERLIN, 2, E, repair=True).rows == set()
    assert not (run / "merlin.npy").exists()


@pytest.mark.parametrize("product", [MERLIN, NORM])
def test_a_damaged_optional_array_is_refused_with_the_command_that_mends_it(whole, product):
    (name,) = product.arrays
    parts.write_part(whole, product, 0, column([0, 1]))
    parts.assemble(whole, product, 2, E)
    flip(whole / f"{name}.npy")
    message = refusal(whole, lambda: parts.made(whole, product, 2, E))
    assert f"{name}.npy: damaged" in message
    assert message.endswith(f"run {product.command} again, or give {product.command} --repair True")
    assert f"{name}.npy: damaged" in refusal(whole, lambda: score_files.read_score_set(whole))
    assert parts.made(whole, product, 2, E, repair=True).rows == set()
    storage.write_array(whole / f"{name}.npy", column([0, 1, 2]))
    message = refusal(whole, lambda: score_files.read_score_set(whole))
    assert f"{name}.npy: holds 3 models, the run 2; delete it" in message


def test_canaries_are_the_last_examples(tmp_path, tiny):
    data = dataclasses.replace(tiny.data, canaries=3)
    run = tmp_path / "run"
    prepare(run, dataclasses.replace(tiny, data=data))
    parts.write_part(run, PHI, 0, *rows([0, 1]))
    assemble(run, 2)
    assert score_files.read_score_set(run).canary.tolist() == [False] * (E - 3) + [True] * 3
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
    found = score_files.read_score_set(whole)
    assert (found.canary, found.merlin, found.gradient_norm) == (None, None, None)


def test_parts_of_other_shards_are_not_read_until_all_come_together(run):
    parts.write_part(run, PHI, 0, *rows([0, 1]))
    parts.write_part(run, PHI, 2, *rows([2, 3]))
    flip(run / score_files.SCORE_PARTS / "scores_00002-00003.npy")
    assert parts.made(run, PHI, 4, E, range(2)).rows == {0, 1, 2, 3}
    before = files_of(run)
    assert parts.made(run, PHI, 4, E, range(2), repair=True).rows == {0, 1, 2, 3}
    assert files_of(run) == before
    with pytest.raises(InputError, match=r"scores_00002-00003\.npy: damaged"):
        assemble(run, 4)


def test_parts_of_models_that_are_being_added_are_left_alone(run):
    parts.write_part(run, PHI, 0, *rows([0, 1]))
    parts.write_part(run, PHI, 2, *rows([2, 3]))
    assert parts.made(run, PHI, 2, E).rows == {0, 1}


def test_a_disk_that_fails_is_not_taken_for_damage(run, monkeypatch):
    parts.write_part(run, PHI, 0, *rows([0, 1]))
    assemble(run, 2)
    before = files_of(run)

    def fail(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(storage, "_is_as_written", fail)
    with pytest.raises(OSError, match="Stale file handle"):
        parts.made(run, PHI, 2, E, repair=True)
    assert files_of(run) == before


def test_no_temporary_file_is_left(whole):
    assert not [name for name in os.listdir(whole) if name.startswith(".")]


# Settings.

ZOO = Product(
    {"zoo": (K,), "two": ()}, "zoo_parts", "score.py --some", {"a": 1, "b": 2}, record_first=True
)


def test_a_record_is_a_table_or_is_refused(tmp_path):
    path = tmp_path / "zoo.json"
    assert parts.read_record(path, "mend it") is None
    parts.write_record(path, {"a": [1, 2]})
    assert parts.read_record(path, "mend it") == {"a": [1, 2]}
    path.write_text("3")
    message = refusal(tmp_path, lambda: parts.read_record(path, "mend it"))
    assert message == f"{path}: damaged (no table); mend it"


@pytest.mark.parametrize("made", ["zoo.npy", "two.npy", "zoo_parts"])
def test_a_product_without_its_record_is_refused_and_made_anew_on_request(tmp_path, made):
    parts.check_settings(tmp_path, ZOO)
    (tmp_path / made).mkdir()
    (tmp_path / made / "file").touch()
    message = refusal(tmp_path, lambda: parts.check_settings(tmp_path, ZOO))
    assert message == (
        f"{tmp_path / made}: zoo.json, which tells its settings, is missing or incomplete; delete "
        "zoo.json, zoo.npy, two.npy and zoo_parts there and run score.py --some again, or give "
        "score.py --some --repair True"
    )
    parts.check_settings(tmp_path, ZOO, repair=True)
    assert not (tmp_path / made).exists()


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"a": 1, "b": 3}, "zoo.json: made with b = 2, not 3; ask for the same to go on with it"),
        ({"a": 1}, "made with b = 2, not None"),
        ({"a": 1, "b": 2, "c": 4}, "which tells its settings, is missing or incomplete"),
    ],
)
def test_a_product_of_other_settings_is_refused_by_the_first_that_differs(tmp_path, now, words):
    parts.write_record(tmp_path / "zoo.json", ZOO.settings)
    parts.check_settings(tmp_path, ZOO)
    other = dataclasses.replace(ZOO, settings=now)
    assert words in refusal(tmp_path, lambda: parts.check_settings(tmp_path, other))


@pytest.mark.parametrize("guarded", [False, True])
def test_the_settings_told_of_a_run_are_those_that_its_scores_were_made_with(run, tiny, guarded):
    """Flags of score.py are not in config.toml."""
    assert score_files.as_scored(run, tiny) == tiny
    phi, (scores, logits) = score_files.phi(1, K, guarded), rows([0, 1])
    parts.write_part(run, phi, 0, scores[..., :1], logits)
    parts.assemble(run, phi, 2, E)
    scored = dataclasses.replace(tiny.score, views=1, memguard=guarded)
    assert score_files.as_scored(run, tiny).score == scored
    for product, changes in (
        (MERLIN, {"noisy_queries": 100, "noise": 0.02}),
        (NORM, {"gradient_norm": True}),
    ):
        parts.write_part(run, product, 0, column([0]))
        assert score_files.as_scored(run, tiny).score == scored  # not of all models yet
        parts.write_part(run, product, 1, column([1]))
        parts.assemble(run, product, 2, E)
        scored = dataclasses.replace(scored, **changes)
        assert score_files.as_scored(run, tiny).score == scored


def test_the_attack_stage_reports_what_was_scored(run, tiny):
    parts.write_part(run, PHI, 0, *rows([0, 1]))
    assemble(run, 2)
    parts.write_part(run, MERLIN, 0, column([0, 1]))
    parts.assemble(run, MERLIN, 2, E)
    asked = dataclasses.replace(tiny, score=ScoreConfig(views=18, gradient_norm=True))
    settings = analyse.about_run(run, asked).settings
    told = {name: settings[f"score.{name}"] for name in ("views", "noisy_queries", "gradient_norm")}
    assert told == {"views": 2, "noisy_queries": 100, "gradient_norm": False}
