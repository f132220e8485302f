"""What is asked of live models is answered, exactly, whatever happens in between."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from lira_jax import ensemble, inference, random_streams, scoring, storage, training
from lira_jax.candidates import build_network, candidates
from lira_jax.config import (
    DataConfig,
    Experiment,
    LabelOnlyConfig,
    NetworkConfig,
    ScoreConfig,
    TrainConfig,
)
from lira_jax.errors import InputError
from lira_jax.interrupts import Stopped
from lira_jax.label_only import asking, carlini_wagner, hop_skip_jump
from lira_jax.label_only.answers import shifts
from lira_jax.run import checkpoints, parts, shards
from lira_jax.run.shards import Shard
from tests.conftest import files_of, refusal
from tests.small_networks import Linear

E, FEW, COPIES, BUDGET = 60, 10, 7, 130
MODELS = [1, 2, 3]  # model 1 is the source, and shares its block with model 0
ASK = LabelOnlyConfig(
    sources="1",
    rotations="4, 30",
    translations="1, 2",
    noise="0.1, 0.4",
    copies=COPIES,
    budget=BUDGET,
    boundary_examples=FEW,
    combined=1,
    combined_budget=BUDGET,
    carlini_wagner=15,
)
CHEAP = dataclasses.replace(ASK, budget=0, combined=0, carlini_wagner=0)


class WithFeatures(Linear):
    def features(self, images):
        return self.norm(images.reshape(len(images), -1))


def network(**settings):
    return WithFeatures(**settings)


def to_be_asked(experiment, **changes):
    config = dataclasses.replace(experiment.label_only, **changes)
    return dataclasses.replace(experiment, label_only=config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four models on 60 digits, trained and scored; not to be changed."""
    experiment = Experiment(
        seed=3,
        data=DataConfig(limit=E),
        network=NetworkConfig("tests.label_only.test_asking:network"),
        train=TrainConfig(
            models=4, epochs=4, batch_size=10, mirror=False, shift=0, ema=0.9, group=4
        ),
        score=ScoreConfig(views=1, batch_size=50),
        label_only=CHEAP,
    )
    run = tmp_path_factory.mktemp("label_only") / "run"
    training.train(experiment, run, jax.devices()[:1])
    scoring.score(experiment, run, jax.devices()[:1])
    return experiment, run


@pytest.fixture(scope="module")
def answered(asked, tmp_path_factory):
    """The same run, asked everything without a disturbance; not to be changed."""
    experiment, run = asked
    run = shutil.copytree(run, tmp_path_factory.mktemp("answered") / "run")
    experiment = dataclasses.replace(experiment, label_only=ASK)
    asking.query(experiment, run, jax.devices()[:1])
    return experiment, run


@pytest.fixture(scope="module")
def asked(trained, tmp_path_factory):
    """The same run, asked all but distances from labels, which take long to compile."""
    experiment, run = trained
    run = shutil.copytree(run, tmp_path_factory.mktemp("asked") / "run")
    experiment = dataclasses.replace(
        experiment, label_only=dataclasses.replace(ASK, budget=0, combined=0)
    )
    asking.query(experiment, run, jax.devices()[:1])
    return experiment, run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[1], tmp_path / "run")


@pytest.fixture(scope="module")
def brute(trained):
    """Data, network, and what each model asked is given as variables."""
    experiment, run = trained
    data = candidates(experiment)
    net = build_network(experiment, data)
    (group,) = checkpoints.saved_groups(run)
    stored = inference.restored(run, group, net)
    return data, net, [jax.tree.map(lambda leaf, n=n: leaf[n], stored) for n in MODELS]


def load(run, name):
    return np.load(run / "label_only" / f"{name}.npy")


def right(brute, model, views, labels):
    """Which views [V, …] the model gives these labels, one call of the network for each model."""
    logits = np.asarray(brute[1].apply(brute[2][model], jnp.asarray(views, jnp.float32)))
    return (logits.argmax(1) == labels).astype(np.float32)


@pytest.mark.accelerator
def test_bits_are_those_of_a_loop_over_scipys_views(asked, brute):
    run, data = asked[1], brute[0]
    x = data.images.astype(np.float64) / 127.5 - 1

    def each(view):
        return np.stack([view(image) for image in x])

    rotate = {"reshape": False, "order": 1, "mode": "nearest"}
    expected = {
        "correct": [x],
        "rotation": [x] + [
            each(lambda image, a=a: ndimage.rotate(image, a, **rotate)) for a in (-4, 4, -30, 30)
        ],
        "translation": [x] + [
            each(lambda image, m=m: ndimage.shift(image, (*m, 0), order=0, mode="nearest"))
            for m in [*shifts(1), *shifts(2)]
        ],
    }  # fmt: skip
    for name, views in expected.items():
        found = load(run, name).reshape(E, 3, -1)
        assert found.shape[2] == len(views)
        for model in range(3):
            for place, view in enumerate(views):
                bits = right(brute, model, view, data.labels)
                np.testing.assert_array_equal(found[:, model, place], bits)
        assert 0 < found.mean() < 1


@pytest.mark.accelerator
def test_noise_is_the_share_of_copies_and_a_function_of_seed_example_strength_and_copy(
    asked, brute
):
    (experiment, run), data = asked, brute[0]
    found = load(run, "noise")
    assert found.shape == (E, 3, 2)
    stream = jax.random.fold_in(jax.random.key(experiment.seed), random_streams.LABEL_NOISE)
    for example in (0, 31, 59):
        x = data.images[example].astype(np.float32) / 127.5 - 1
        for place, strength in enumerate((0.1, 0.4)):
            key = jax.random.fold_in(jax.random.fold_in(stream, example), place)
            draws = [jax.random.normal(jax.random.fold_in(key, t), x.shape) for t in range(COPIES)]
            views = np.clip(x + 2 * strength * np.stack(draws), -1, 1)
            for model in range(3):
                share = right(brute, model, views, data.labels[example]).mean()
                assert found[example, model, place] == pytest.approx(share)
    assert len(np.unique(found)) > 3


def test_distances_are_those_of_each_example_alone(answered, brute):
    (experiment, run), (data, net, variables) = answered, brute
    boundary, queries = load(run, "boundary"), load(run, "boundary_queries")
    combined, spent = load(run, "combined"), load(run, "combined_queries")
    assert boundary.shape == (FEW, 3, 2)
    assert combined.shape == spent.shape == (FEW, 3, 5)
    key = jax.random.fold_in(jax.random.key(experiment.seed), random_streams.BOUNDARY)

    @jax.jit
    def alone(own, x, label, number, copy):
        def classify(views):
            return jnp.argmax(net.apply(own, views), axis=1)

        return hop_skip_jump.run(
            classify, x, label, number, others, jax.random.fold_in(key, copy), (100, BUDGET), 50
        )

    others = jnp.asarray(data.images, jnp.float32) / 127.5 - 1  # as many as there are at most
    for example, model in ((0, 0), (3, 1), (9, 2)):
        number, label = jnp.array([example]), jnp.asarray(data.labels)[jnp.array([example])]
        # The copy moved by (0, 1), which is the fourth: shifts go from (−1, 0) to (1, 0).
        moved = others[example][:, jnp.array([0, *range(others.shape[2] - 1)])]
        for copy, x, reached, asked in (
            (0, others[example], boundary[example, model], queries[example, model]),
            (3, moved, combined[example, model, 3:4], spent[example, model, 3]),
        ):
            state = alone(variables[model], x[None], label, number, copy)
            np.testing.assert_allclose(reached, state.reached[0][-len(reached) :], rtol=1e-3)
            assert asked == state.queries[0]
    # The identity's copy is asked about as the image itself was.
    np.testing.assert_allclose(combined[:, :, 0], boundary[:, :, -1], rtol=1e-5)
    np.testing.assert_array_equal(spent[:, :, 0], queries)
    np.testing.assert_array_equal(boundary[:, :, -1] == 0, load(run, "correct")[:FEW] == 0)
    assert queries.max() <= BUDGET


@pytest.mark.accelerator
def test_gradients_and_features_are_those_of_the_model(asked, brute):
    run, (data, net, variables) = asked[1], brute
    x = jnp.asarray(data.images, jnp.float32) / 127.5 - 1
    found = load(run, "carlini_wagner")
    assert found.shape == (FEW, 3)
    for model in range(3):
        alone = carlini_wagner.distances(
            lambda x, m=model: net.apply(variables[m], x), x[:FEW], jnp.asarray(data.labels[:FEW]),
            ASK.carlini_wagner,
        )  # fmt: skip
        np.testing.assert_allclose(found[:, model], alone, rtol=1e-3, atol=1e-5)
    features, last = load(run, "features"), variables[0]["params"]["dense"]
    assert features.shape == (E, 1, int(np.prod(data.image_shape)))
    logits = features[:, 0] @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(logits, net.apply(variables[0], x), rtol=1e-3, atol=1e-3)


def test_files_tell_what_was_asked_of_whom(answered):
    folder = answered[1] / "label_only"
    told = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert told.pop("models").items() >= {"sources": [1], "targets": [2, 3]}.items()
    assert all(table.pop("whole") for table in told.values())
    assert told == {
        "correct": {"examples": E},
        "rotation": {"examples": E, "rotations": [4, 30]},
        "translation": {"examples": E, "translations": [1, 2]},
        "noise": {"examples": E, "noise": [0.1, 0.4], "copies": COPIES},
        "features": {"examples": E},
        "boundary": {"examples": FEW, "checkpoints": [100, BUDGET]},
        "combined": {"examples": FEW, "distance": 1, "budget": BUDGET},
        "carlini_wagner": {"examples": FEW, "steps": 15},
    }


def binary(monkeypatch):
    """The same run's images in black and white."""

    def black_and_white(experiment, real=candidates):
        data = real(experiment)
        return dataclasses.replace(data, images=np.where(data.images > 127, 255, 0).astype("u1"))

    monkeypatch.setattr(inference, "candidates", black_and_white)


def test_flips_of_images_of_two_values_turn_each_feature_with_the_asked_probability(
    trained, run, brute, monkeypatch
):
    binary(monkeypatch)
    experiment = to_be_asked(trained[0], rotations="", translations="", noise="", flips="0.2, 1")
    asking.query(experiment, run, jax.devices()[:1])
    found, x = load(run, "flips"), np.where(brute[0].images > 127, 1.0, -1.0)
    for model in range(3):
        opposite = right(brute, model, -x, brute[0].labels)
        np.testing.assert_array_equal(found[:, model, 1], opposite)
    assert set(np.unique(np.rint(found[..., 0] * COPIES))) > {0, COPIES}


def interrupted(monkeypatch, most):
    """Parts of 16 and 4 examples, and Ctrl-C after so many are written."""
    monkeypatch.setattr(asking, "PART", 16)
    monkeypatch.setattr(asking, "DISTANCES_PART", 4)
    written = []

    def write_part(*arguments, real=parts.write_part):
        real(*arguments)
        written.append(arguments[2])
        if len(written) == most:
            raise KeyboardInterrupt

    monkeypatch.setattr(parts, "write_part", write_part)
    return written


def answers_of(run):
    """Every file of the answers; who asked for them locks some more."""
    found = files_of(run / "label_only")
    return {name: content for name, content in found.items() if not name.startswith(".lock")}


NO_COMBINED = ("combined.npy", "combined.json", "combined_queries.npy", "carlini_wagner.npy",
               "carlini_wagner.json")  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(answered):
    return {name: data for name, data in answers_of(answered[1]).items() if name not in NO_COMBINED}


def test_killed_between_parts_it_goes_on_and_answers_are_bitwise_the_same(
    trained, run, undisturbed, monkeypatch
):
    experiment = to_be_asked(trained[0], budget=BUDGET)
    for most in (3, 9):
        with monkeypatch.context() as patch:
            interrupted(patch, most)
            with pytest.raises(KeyboardInterrupt):
                asking.query(experiment, run, jax.devices()[:2])
    # What is whole can be used already: of 3 products, the last was not put together yet.
    assert len(list((run / "label_only").glob("*.npy"))) == 2
    with monkeypatch.context() as patch:
        written = interrupted(patch, 100)
        asking.query(experiment, run, jax.devices()[:1])
    # 60 examples are 4 parts of 5 products; distances of 10 are 3.
    assert len(written) == 5 * 4 + 3 - (3 + 9)
    assert answers_of(run) == undisturbed


def test_sigterm_stops_between_dispatches_and_leaves_whole_parts(trained, run, monkeypatch):
    def tell(*arguments, real=ensemble.on_host):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(ensemble, "on_host", tell)
    with pytest.raises(Stopped, match="run the same command again to go on") as caught:
        asking.query(trained[0], run, jax.devices()[:1])
    assert caught.value.exit_code == 143
    assert not list((run / "label_only").glob("*.npy"))


def test_shards_share_the_examples_and_the_last_puts_all_together(
    trained, run, undisturbed, capsys
):
    experiment = to_be_asked(trained[0], budget=BUDGET)
    asking.query(experiment, run, jax.devices()[:1], Shard(1, 2))
    assert "correct of examples 0–29 is still missing" in capsys.readouterr().out
    assert (run / "label_only" / "rotation_parts" / "rotation_00030-00059.npy").exists()
    asking.query(experiment, run, jax.devices()[:1], Shard(0, 2))
    assert answers_of(run) == undisturbed


def test_asking_for_more_later_leaves_what_is_there_and_asks_only_that(
    trained, run, undisturbed, monkeypatch
):
    first = to_be_asked(trained[0], rotations="", noise="", features=False)
    asking.query(first, run, jax.devices()[:1])
    before = answers_of(run)
    assert set(before) == {
        "models.json", "correct.npy", "correct.json", "translation.npy", "translation.json",
    }  # fmt: skip
    written = interrupted(monkeypatch, 100)
    asking.query(trained[0], run, jax.devices()[:1])
    assert len(written) == 3 * 4
    after = answers_of(run)
    assert {name: after[name] for name in before} == before
    assert after == {name: undisturbed[name] for name in after}
    monkeypatch.setattr(ensemble, "over_models", None)
    asking.query(trained[0], run)
    assert answers_of(run) == after


def test_models_too_many_for_memory_are_asked_in_halves(
    trained, run, undisturbed, monkeypatch, capsys
):
    def over_models(*arguments, real=ensemble.over_models):
        usual = real(*arguments)

        def lifted(models, *shared):
            if jax.tree.leaves(models)[0].shape[0] > 1:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9.9GiB.")
            return usual(models, *shared)

        return lifted

    monkeypatch.setattr(ensemble, "over_models", over_models)
    asking.query(to_be_asked(trained[0], rotations="", noise=""), run, jax.devices()[:2])
    assert "2 models do not fit into memory together; going on with 1" in capsys.readouterr().out
    found = answers_of(run)
    assert found == {name: undisturbed[name] for name in found}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "1, 2"}, "label_only.targets: model 1 is a source model too"),
        ({"translations": "8"}, "label_only.translations: a shift of 8 pixels does not fit images"),
        ({"combined": 8}, "label_only.combined: a shift of 8 pixels does not fit images of 8×8"),
        ({"flips": "0.1"}, 'label_only.flips = "0.1": features have 17 values, and only two can'),
        ({"budget": 20}, "label_only.budget = 20: HopSkipJump needs at least"),
        ({"examples": 1, "boundary_examples": 1}, "label_only: of correct, the source models"),
        ({"combined": 1, "combined_budget": 9}, "label_only.combined_budget = 9: HopSkipJump"),
    ],
)
def test_questions_that_do_not_fit_are_refused_before_anything_is_written(
    trained, run, changes, message
):
    for name in ("scores.npy", "logits.npy"):
        (run / name).unlink()
    experiment = to_be_asked(trained[0], **changes)
    assert refusal(run, lambda: asking.query(experiment, run)).startswith(message)


def test_models_that_are_not_trained_are_named(trained, run):
    shutil.rmtree(run / "checkpoints")
    message = refusal(run, lambda: asking.query(trained[0], run, shard=Shard(0, 9)))
    assert f"models 1–3 of 4 not trained yet; run python train.py --run {run}" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotations": "4"}, "rotation.npy: made with rotations = [4.0, 30.0], not [4.0]; ask"),
        ({"copies": 8}, f"noise.npy: made with copies = {COPIES}, not 8; ask for the same"),
        ({"examples": 50}, f"correct.npy: made with examples = {E}, not 50; ask for the same"),
        ({"sources": "0"}, 'models.json: sources were "1", not "0"; give --label_only.sources "1"'),
        ({"targets": "3"}, 'models.json: targets were "2, 3", not "3"; give --label_only.targets'),
    ],
)
def test_answers_to_other_questions_are_refused_by_what_differs(answered, changes, message):
    experiment, run = answered
    assert message in refusal(run, lambda: asking.query(to_be_asked(experiment, **changes), run))


def test_other_questions_are_refused_from_the_first_part_on_and_asked_once_all_is_deleted(
    trained, run, monkeypatch
):
    only_noise = to_be_asked(trained[0], rotations="", translations="", features=False)
    other = to_be_asked(only_noise, copies=8)
    with monkeypatch.context() as patch:
        interrupted(patch, 5)  # one of noise
        with pytest.raises(KeyboardInterrupt):
            asking.query(only_noise, run, jax.devices()[:1])
    for name in ("noise.json", "noise_parts"):
        message = refusal(run, lambda: asking.query(other, run))
        assert "delete noise.json, noise.npy and noise_parts there" in message
        storage.remove(run / "label_only" / name)
    asking.query(other, run, jax.devices()[:1])
    assert load(run, "noise").max() == 1
    assert len(np.unique(load(run, "noise") * 8 % 1)) == 1


def test_answers_to_unknown_questions_are_refused(trained, run):
    asking.query(trained[0], run, jax.devices()[:1])
    (run / "label_only" / "noise.json").unlink()
    message = refusal(run, lambda: asking.query(trained[0], run))
    assert (
        "noise.npy: noise.json, which tells its settings, is missing or incomplete; delete"
        in message
    )


def test_answers_of_unknown_models_are_refused(answered, tmp_path):
    experiment, run = answered
    run = shutil.copytree(run, tmp_path / "run")
    (run / "label_only" / "models.json").unlink()
    message = refusal(run, lambda: asking.query(to_be_asked(experiment, sources="0"), run))
    assert "models.json, which tells whose answers these are, is missing; delete" in message


def test_damaged_answers_are_refused_and_asked_for_again_with_repair(trained, run, undisturbed):
    asking.query(trained[0], run, jax.devices()[:1])
    path = run / "label_only" / "noise.npy"
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"?" + content[201:])
    message = refusal(run, lambda: asking.query(trained[0], run))
    assert "noise.npy: damaged" in message
    assert message.endswith("give score.py --label-only --repair True")
    asking.query(trained[0], run, jax.devices()[:1], repair=True)
    assert path.read_bytes() == undisturbed["noise.npy"] == content


def test_another_process_at_work_on_the_same_examples_is_noticed(trained, run):
    (run / "label_only").mkdir()
    lock = run / "label_only" / ".lock-noise"
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'ab');"
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 40); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(
            InputError, match=r"another score\.py is at work on noise of examples among"
        ):
            asking.query(trained[0], run)
        asking.query(trained[0], run, jax.devices()[:1], Shard(0, 2))
        other.communicate(b"\n")


def test_memguard_changes_no_answer(trained, run, undisturbed):
    for name in ("scores.npy", "logits.npy"):
        (run / name).unlink()
    guarded = dataclasses.replace(
        to_be_asked(trained[0], rotations="", noise="", features=False),
        score=dataclasses.replace(trained[0].score, memguard=True),
    )
    asking.query(guarded, run, jax.devices()[:1])
    assert (run / "scores.json").exists()
    answered = answers_of(run)
    assert answered == {name: undisturbed[name] for name in answered}


def test_the_flag_asks_after_scoring_what_is_missing_and_says_what_to_do_next(
    trained, run, undisturbed, monkeypatch, capsys
):
    from lira_jax.commands import score  # needs more packages than the other tests here

    monkeypatch.setattr(ensemble, "set_up", shards.parse)
    before = (run / "scores.npy").read_bytes()
    (run / "scores.npy").unlink()
    words = ["--label_only.copies", str(COPIES), "--label_only.rotations", ""]
    score.main(["--label-only", "--trust-code", "--run", str(run), *words])
    assert (run / "scores.npy").read_bytes() == before
    found = answers_of(run)
    assert found == {name: undisturbed[name] for name in found}
    queries = E * 3 * (1 + 13 + 2 * COPIES)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(
        f"{E} examples under 1 source and 2 target models asked for correct, "
        f"translation, noise, features: {queries:,} queries; run python attack.py --run {run}"
    )


def test_exact_queries_are_told_where_they_are_not_known_before(answered, capsys):
    experiment, run = answered
    asking.query(experiment, run)
    counted = load(run, "boundary_queries").sum() + load(run, "combined_queries").sum()
    queries = E * 3 * (1 + 5 + 13 + 2 * COPIES) + int(counted)
    assert f": {queries:,} queries;" in capsys.readouterr().out


@pytest.mark.parametrize("size", [1, 4, 100])
def test_pieces_hold_every_number_once_and_never_what_is_left_out(size):
    numbers = [0, 1, 2, 3, 4, 9, 10, 11, 12, 20]
    pieces = inference.pieces(numbers, size)
    assert [n for piece in pieces for n in piece] == numbers
    assert all(piece.start // size == (piece.stop - 1) // size for piece in pieces)
