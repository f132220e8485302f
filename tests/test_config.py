"""The experiment as TOML: what is read is what was written, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import os
import time
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lira_jax import config, config_file
from lira_jax.config import (
    AttackConfig,
    DataConfig,
    Experiment,
    LabelOnlyConfig,
    NetworkConfig,
    ScoreConfig,
    TrainConfig,
    TrustConfig,
)
from lira_jax.errors import InputError
from lira_jax.fields import fields_of
from lira_jax.run import continuing
from lira_jax.run.continuing import FREE_TO_CHANGE

CONFIGS = sorted(Path(__file__).resolve().parents[1].glob("configs/**/*.toml"))

texts = st.text(st.characters(codec="utf-8"))
floats = st.floats(allow_nan=False)
numbers = st.integers(-(2**63), 2**63 - 1)  # as TOML promises to keep them
experiments = st.builds(
    Experiment,
    seed=numbers,
    data=st.builds(
        DataConfig,
        name=texts,
        path=texts,
        limit=numbers,
        leave_out=st.lists(texts, unique=True),
    ),
    network=st.builds(NetworkConfig, arch=texts),
    train=st.builds(TrainConfig, keep=texts, learning_rate=floats, ema=floats, momentum=floats),
    score=st.builds(ScoreConfig),
    label_only=st.builds(
        LabelOnlyConfig,
        targets=st.lists(numbers, unique=True),
        noise=st.lists(floats, unique=True),
    ),
    attack=st.builds(
        AttackConfig, temperatures=st.lists(floats | st.just("fit"), unique=True, max_size=3)
    ),
)
every_character = "".join(chr(code) for code in range(0x100)) + "\u2028\ufeff\\u0041€𝄞"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "some.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def load_text(folder: Path, text: str | bytes) -> Experiment:
    return config_file.load(written(folder, text))


def refusal(folder: Path, text: str | bytes) -> str:
    """The one line with which a file is refused, which names the file."""
    with pytest.raises(InputError) as caught:
        config.check(load_text(folder, text))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def of(**changes: object) -> Experiment:
    """The defaults with dotted fields replaced, dots written as two underscores."""
    experiment = Experiment()
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        if section:
            inner = dataclasses.replace(getattr(experiment, section), **{key: value})
            key, value = section, inner
        experiment = dataclasses.replace(experiment, **{key: value})  # type: ignore[arg-type]
    return experiment


@given(experiments)
@example(of(data__path=every_character, data__name='"""', network__arch="\\", train__keep="'"))
@example(of(train__learning_rate=float("inf"), train__ema=1e-300, train__momentum=1e22))
def test_what_is_written_is_read_back(tmp_path_factory, experiment):
    folder = tmp_path_factory.getbasetemp()
    text = config_file.to_toml(experiment, {"data_digest": every_character})
    assert load_text(folder, text) == experiment
    assert tomllib.loads(text)["run"] == {"data_digest": every_character}


def test_fields_left_out_take_their_defaults(tmp_path):
    assert load_text(tmp_path, "") == Experiment()
    assert load_text(tmp_path, "[train]\nmodels = 16") == of(train__models=16)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    assert load_text(tmp_path, b"\xef\xbb\xbfseed = 7") == of(seed=7)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_the_repository_can_be_used(path):
    experiment = config.check(config_file.load(path))
    assert continuing.differences(experiment, Experiment())


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("sede = 1", "sede", "seed"),
        ("model = 4", "model", "train.models"),
        ("[train]\nmodles = 4", "train.modles", "train.models"),
        ("[train]\nlr = 0.1\nlearning-rate = 0.1", "train.lr", None),
        ("[train]\nlearning-rate = 0.1", "train.learning-rate", "train.learning_rate"),
        ("[train]\nlimit = 100", "train.limit", "data.limit"),
        ("[attack]\nviews = 18", "attack.views", "score.views"),
        ("[score]\nbatchsize = 1", "score.batchsize", "score.batch_size"),
        ("[trian]\nmodels = 4", "trian", "[train]"),
        ("[model]\ndepth = 8", "model", "train.models"),
        ("[data.images]\nlimit = 1", "data.images", None),
        ('"quo\\nted" = 1', "quo ted", None),
        ("zzzz = 1", "zzzz", None),
    ],
)
def test_an_unknown_key_is_named_with_its_file_and_the_nearest_valid_one(
    tmp_path, text, key, nearest
):
    with pytest.raises(InputError) as caught:
        load_text(tmp_path, text)
    message = " ".join(str(caught.value).splitlines())  # as the command line prints it
    assert message.startswith(f"{tmp_path}/some.toml: unknown key `{key}`; ")
    if nearest is None:
        assert "valid keys: " in message
    else:
        assert message.endswith(f"did you mean `{nearest}`?")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[train]\nmodels = "4"', "train.models = '4': must be a whole number"),
        ("[train]\nmodels = 4.0", "train.models = 4.0: must be a whole number"),
        ("[train]\nmodels = true", "train.models = True: must be a whole number"),
        ("[train]\nmodels = [4]", "train.models = [4]: must be a whole number"),
        ("[train]\nkeep = 0.5", "train.keep = 0.5: must be text in quotes"),
        ("[train]\nmirror = 1", "train.mirror = 1: must be true or false"),
        ('[train]\nmirror = "no"', "train.mirror = 'no': must be true or false"),
        ("[train]\nema = true", "train.ema = True: must be a number"),
        (f"[train]\nema = {2**62}", "must be a number"),
        ("[data]\nlimit = 2026-01-01", "must be a whole number"),
        (
            '[train]\noptimizer = "lion"',
            "train.optimizer = 'lion': choose one of momentum, nesterov, sgd, adam",
        ),
        ("[score]\nviews = 3", "score.views = 3: choose one of 1, 2, 18, 162"),
        ("[score]\nviews = true", "score.views = True: choose one of 1, 2, 18, 162"),
        ("[score]\nviews = 2.0", "score.views = 2.0: choose one of 1, 2, 18, 162"),
        ("[score]\nviews = [2]", "score.views = [2]: choose one of 1, 2, 18, 162"),
        ("train = 3", "`train` is a section: write [train]"),
        ("[train", "not readable as TOML"),
        ("seed = 1\nseed = 2", "not readable as TOML"),
        (b"[data]\nname = '\xff'", "not readable as TOML"),
        (bytes(range(256)), "not readable as TOML"),
    ],
)
def test_a_wrong_type_choice_or_file_is_named_with_its_place(tmp_path, text, problem):
    message = refusal(tmp_path, text)
    assert message.startswith(f"{tmp_path}/some.toml: ")
    assert problem in message


def test_a_whole_number_is_a_number(tmp_path):
    read = load_text(tmp_path, "[train]\nlearning_rate = 1").train.learning_rate
    assert (read, type(read)) == (1.0, float)


@pytest.mark.parametrize("name", ["missing.toml", "file/below.toml"])
def test_a_missing_file_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"{name}: no such file; configs/ holds examples"):
        config_file.load(tmp_path / name)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match="is a folder, not a file; give a TOML file"):
        config_file.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train__keep": keep}, "between 0 and 1")
        for keep in ("0", "1", "2/2", "3/2", "-1/2", "1/0", "half", "", "nan", "inf", "1/2/3")
    ]
    + [
        ({"train__models": 3}, "blocks of 2"),
        ({"train__models": 4, "train__keep": "1/3"}, "multiple of 3"),
        ({"train__models": 6, "train__keep": "1/4"}, "multiple of 4"),
        ({"train__models": 0}, "at least 1"),
        ({"train__models": -2}, "at least 1"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"seed": 2**32}, "seed = 4294967296: must be at least 0 and below 4294967296"),
        ({"data__limit": -1}, "data.limit"),
        ({"network__depth": 0}, "network.depth"),
        ({"network__width": -16}, "network.width"),
        ({"train__epochs": 0}, "train.epochs"),
        ({"train__batch_size": 0}, "train.batch_size"),
        ({"train__shift": -1}, "train.shift"),
        ({"train__cutout": -1}, "train.cutout"),
        ({"train__group": -1}, "train.group"),
        ({"train__width": -1}, "train.width"),
        ({"train__eval_examples": 0}, "train.eval_examples"),
        ({"train__weight_decay": -1e-4}, "train.weight_decay"),
        ({"train__weight_decay": float("inf")}, "finite"),
        ({"train__checkpoint_minutes": -1.0}, "train.checkpoint_minutes"),
        ({"score__batch_size": -1}, "score.batch_size"),
        ({"attack__queries": -1}, "attack.queries"),
        ({"attack__fpr": 0.0}, "attack.fpr = 0.0: must be above 0 and below 1"),
        ({"attack__fpr": 1.0}, "attack.fpr"),
        ({"attack__fpr": float("nan")}, "attack.fpr"),
        ({"data__canaries": -1}, "data.canaries"),
        ({"score__noisy_queries": -1}, "score.noisy_queries"),
        ({"score__noise": 0.0}, "score.noise = 0.0: must be above 0"),
        ({"score__noise": float("inf")}, "finite"),
        ({"train__ema": 1.0}, "below 1"),
        ({"train__ema": -0.1}, "below 1"),
        ({"train__ema": float("nan")}, "train.ema"),
        ({"train__momentum": 1.0}, "train.momentum"),
        (
            {"train__label_smoothing": 1.0},
            "train.label_smoothing = 1.0: must be",
        ),
        ({"train__label_smoothing": -0.1}, "train.label_smoothing"),
        ({"train__learning_rate": 0.0}, "above 0"),
        ({"train__learning_rate": -0.1}, "above 0"),
        ({"train__learning_rate": float("nan")}, "finite"),
        ({"train__learning_rate": float("inf")}, "finite"),
        ({"data__path": "a\0b"}, "data.path"),
        ({"data__path": "\udcff"}, "Unicode"),
    ],
)
def test_values_that_no_stage_could_use_are_named(changes, problem):
    with pytest.raises(InputError, match=problem):
        config.check(of(**changes))


def test_the_defaults_can_be_used():
    assert config.check(Experiment()) == Experiment()


@pytest.mark.parametrize(
    ("keep", "fraction"), [("1/2", (1, 2)), ("0.5", (1, 2)), ("2/4", (1, 2)), ("2/3", (2, 3))]
)
def test_keep_is_a_fraction_in_lowest_terms(keep, fraction):
    assert config.keep_fraction(keep) == fraction


def changed(value: object) -> object:
    if isinstance(value, bool):
        return not value
    return f"{value}x" if isinstance(value, str) else value + 1  # type: ignore[operator]


@pytest.mark.parametrize("name", list(config.flatten(Experiment())))
def test_a_run_may_go_on_only_if_nothing_that_changes_its_weights_differs(name):
    run = of(data__canaries=2)
    before = config.flatten(run)[name]
    after = {"train.keep": "1/3", "trust.inputs": "test"}.get(name) or changed(before)
    if name in LISTS and after == f"{before}x":
        after = f"{before}, 7".removeprefix(", ")
    section, _, key = name.rpartition(".")
    held = getattr(run, section) if section else run
    other = dataclasses.replace(held, **{key: after})
    found = continuing.differences(
        run, dataclasses.replace(run, **{section: other}) if section else other
    )
    free = name in FREE_TO_CHANGE or name.startswith(("score.", "label_only.", "trust.", "attack."))
    assert found == ([] if free else [(name, before, after)])


def test_the_kind_of_no_canaries_is_no_difference():
    noise = of(data__canary_kind="noise")
    assert continuing.differences(Experiment(), noise) == []
    some = dataclasses.replace(noise, data=dataclasses.replace(noise.data, canaries=3))
    assert continuing.differences(Experiment(), some) == [("data.canaries", 0, 3)]
    mislabelled = of(data__canaries=3)
    assert continuing.differences(mislabelled, some) == [
        ("data.canary_kind", "mislabelled", "noise")
    ]


def test_another_spelling_of_the_same_keep_fraction_is_no_difference():
    assert continuing.differences(of(train__keep="1/2"), of(train__keep="2/4")) == []


def test_weights_to_begin_with_may_lie_elsewhere_but_not_appear_or_vanish():
    """That they are the same is told by their digest."""
    none, here, there = (of(defence__transfer_from=path) for path in ("", "a", "b"))
    assert continuing.differences(here, there) == []
    assert continuing.differences(none, here) == [("defence.transfer_from", "", "a")]
    assert continuing.differences(here, none) == [("defence.transfer_from", "a", "")]


def test_free_fields_exist():
    assert set(config.flatten(Experiment())) >= FREE_TO_CHANGE


# Lists.

LISTS = {
    "data.leave_out": ("ship, truck", ["ship", "truck"], ("ship", "truck")),
    "label_only.sources": ("0, 2-4,7", [0, "2-4", 7], (0, 2, 3, 4, 7)),
    "label_only.targets": ("", [], ()),
    "label_only.rotations": (" 4,30", [4, 30.0], (4.0, 30.0)),
    "label_only.translations": ("1, 2.0,", [1, 2], (1, 2)),
    "label_only.noise": ("1e-1", [0.1], (0.1,)),
    "label_only.flips": (" , ", [], ()),
    "trust.inputs": (" scaled,test ,", ["scaled", "test"], ("scaled", "test")),
    "trust.data_sets": ("mnist=../mnist, a=b=c", ["mnist=../mnist", "a=b=c"], None),
    "trust.same_classes": (" mnist,", ["mnist"], ("mnist",)),
    "attack.temperatures": (" fit, 0.5,2", ["fit", 0.5, 2], ("fit", 0.5, 2.0)),
}


def test_lists_are_lists_and_text_with_commas_as_earlier_versions_wrote_it(tmp_path):
    """All three ways to give them: TOML's lists, text, and Python's sequences."""
    for name, (text, entries, expected) in LISTS.items():
        section, _, key = name.partition(".")
        expected = expected or tuple(entries)
        shown = repr(entries).replace("'", '"')
        for written in (f'"{text}"', shown):
            read = load_text(tmp_path, f"[{section}]\n{key} = {written}")
            assert getattr(getattr(read, section), key) == expected
        given = getattr(of(**{f"{section}__{key}": entries}), section)
        assert getattr(given, key) == expected
        assert list(map(type, getattr(given, key))) == list(map(type, expected))
        # As records of runs show it: like the text that earlier versions were given.
        assert config.flatten(load_text(tmp_path, f"[{section}]\n{key} = {shown}"))[
            name
        ] == ", ".join(str(entry).removesuffix(".0") for entry in expected)


def test_the_defaults_are_recorded_as_before_lists_were_lists():
    flat = config.flatten(Experiment())
    assert {name: flat[name] for name in LISTS} == {
        "data.leave_out": "", "label_only.sources": "0", "label_only.targets": "",
        "label_only.rotations": "1, 4, 8", "label_only.translations": "1, 2",
        "label_only.noise": "0.02, 0.05, 0.1", "label_only.flips": "", "trust.inputs": "all",
        "trust.data_sets": "", "trust.same_classes": "", "attack.temperatures": "fit, 0.5, 2, 10",
    }  # fmt: skip


def test_a_run_goes_on_whose_config_has_text_for_lists(tmp_path):
    old = load_text(tmp_path, '[data]\nleave_out = "ship,truck"\n[label_only]\nnoise = "0.1"')
    new = of(data__leave_out=("ship", "truck"), label_only__noise=[0.1])
    assert old == new
    assert load_text(tmp_path, config_file.to_toml(old, {})) == new
    assert continuing.differences(old, new) == []


def test_sources_of_data_sets_may_hold_any_sign() -> None:
    trust = TrustConfig(data_sets=("mnist = ../mnist ", "odd=a=b"))
    assert config.other_data_sets(trust) == {"mnist": "../mnist", "odd": "a=b"}
    assert config.other_data_sets(TrustConfig()) == {}


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("trust.inputs", "test, tset", 'inputs = "test, tset": tset must be all or test or perm'),
        ("trust.inputs", "test, scaled, test", "test is there twice"),
        ("trust.inputs", "test, all", "all is every kind"),
        ("trust.inputs", "all, all", "all is there twice"),
        ("trust.data_sets", "mnist", 'trust.data_sets = "mnist": mnist is no name=source'),
        ("trust.data_sets", "mnist=", "mnist= is no name=source"),
        ("trust.data_sets", "=mnist", "=mnist is no name=source"),
        ("trust.data_sets", "a/b=c", "a/b cannot name files"),
        ("trust.data_sets", "..=c", ".. cannot name files"),
        ("trust.data_sets", "é=c", "é cannot name files"),
        ("trust.data_sets", f"{'n' * 65}=c", "at most 64"),
        ("trust.data_sets", "a=b, A=c", "the name A is taken"),
        *(("trust.data_sets", f"{name}=c", f"the name {name} is taken")
          for name in ("Test", "fit", "candidates", "generated")),
        ("trust.same_classes", "e", 'same_classes = "e": e is no name in trust.data_sets, which'),
        *(("attack.temperatures", bad, f'attack.temperatures = "{bad}": must be at least 1e-06')
          for bad in ("0", "-1", "1e-40")),
        *(("attack.temperatures", bad, "must be a finite number") for bad in ("nan", "inf")),
        ("attack.temperatures", "2, warm", '"2, warm": warm must be a number or fit'),
        ("attack.temperatures", "2, 2.0", "2.0 is there twice"),
        ("attack.temperatures", "fit, fit", "fit is there twice"),
        ("label_only.rotations", "0", 'rotations = "0": must be above 0 and at most 180'),
        ("label_only.rotations", "5, x", '"5, x": x must be a number'),
        ("label_only.translations", "1.5", "1.5 must be a whole number or a range such as 2-5"),
        ("label_only.translations", "0", "must be at least 1"),
        ("label_only.flips", "1.1", "must be above 0 and at most 1"),
        ("label_only.sources", "5-2", "5-2 must be a whole number or a range"),
        ("label_only.sources", "0, 0-3", "0-3 is there twice"),
        ("label_only.targets", "all", "all must be a whole number or a range"),
    ],
)  # fmt: skip
def test_bad_entries_of_lists_are_refused_by_name(tmp_path, name, text, part) -> None:
    section, _, key = name.partition(".")
    message = refusal(tmp_path, f'[{section}]\n{key} = "{text}"')
    assert part in message
    with pytest.raises(InputError, match=name):
        config.check(of(**{f"{section}__{key}": text.split(", ")}))


@pytest.mark.parametrize("value", ["4", "true", "{a = 1}", "[[1]]", "[true]", "[2026-01-01]"])
def test_a_list_of_something_else_is_refused(tmp_path, value):
    message = refusal(tmp_path, f"[label_only]\nrotations = {value}")
    assert "label_only.rotations = " in message
    assert "must be a" in message


# Numbers, words and files beyond all bounds.


def of_every_number() -> list[tuple[str, type]]:
    """Every field that is a number, or a list of them, and the type of the number."""
    return [
        (f"{section}.{key}" if section else key, entry)
        for section, kind in {
            "": Experiment,
            **{key: declared.kind for key, declared in fields_of(Experiment).items()},
        }.items()
        if dataclasses.is_dataclass(kind)
        for key, declared in fields_of(kind).items()
        for entry in [declared.entry or declared.kind]
        if entry in (int, float)
    ]


@pytest.mark.parametrize(("name", "kind"), of_every_number())
def test_every_number_has_limits_on_both_sides(tmp_path, name, kind):
    section, _, key = name.rpartition(".")
    header = f"[{section}]\n" if section else ""
    values = ["1e30", "-1e30", "nan", "inf", "-inf"] if kind is float else [2**62, -(2**62)]
    for value in values:
        shown = f"[{value}]" if isinstance(config.flatten(Experiment())[name], str) else value
        assert "must be" in refusal(tmp_path, f"{header}{key} = {shown}")


def test_minus_nothing_is_nothing(tmp_path):
    read = load_text(tmp_path, "[train]\nweight_decay = -0.0\n[defence]\ndp_clip = -0.0")
    assert read == of(train__weight_decay=0.0)
    assert "-0.0" not in str(config.flatten(read))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"seed = {'9' * 5000}", "not readable as TOML"),
        (f"seed = 0x{'f' * 5000}", "a number of more than 200 digits: must be a whole number of"),
        (f"unheard_of = 0x{'f' * 5000}", "at most 64 bits"),
        (f"[data]\nleave_out = {'[' * 3000}{']' * 3000}", "not readable as TOML"),
        (f"{'a' * 100_000} = 1", "unknown key `aaa"),
        (f"[data]\nname = {'[' * 50}{']' * 50}", "must be text in quotes"),
        ("[train]\nepochs = 1_000_000_001", "at most 1000000000"),
        ("[network]\nwidth = 1_000_000_000", "network.width = 1000000000: must be at least 1 and"),
        ("[label_only]\ntargets = '0-999999999999'", "more than 100,000 entries; give fewer"),
        (f"[label_only]\ntargets = '{'9' * 5000}'", "must be a whole number or a range"),
        (f"[label_only]\ntargets = '0-{'9' * 5000}'", "must be a whole number or a range"),
        ("[run]\ndata_digest = 2026-01-01", "run.data_digest = datetime.date(2026, 1, 1): must be"),
        ("[run]\njax = nan", "run.jax = nan: must be text in quotes"),
        ("run = 1", "`run` is a section: write [run]"),
        ("[attack]\nextra = 2026-01-01T00:00:00Z", "must be text in quotes"),
        ("#" * (10**6 + 1), "has more than 1,000,000 bytes"),
    ],
    ids=range(16),
)
def test_what_no_configuration_needs_is_refused_at_once(tmp_path, text, problem):
    begun = time.monotonic()
    message = refusal(tmp_path, text)
    assert time.monotonic() - begun < 1
    assert problem in message
    assert len(message) < 1000


@pytest.mark.parametrize("keep", ["1e-9999999", "1/9999999", "1_0/2_0", "0x1/2", "１/２", "." * 9])
def test_a_share_is_two_short_whole_numbers(tmp_path, keep):
    begun = time.monotonic()
    assert f'train.keep = "{keep}": give a fraction' in refusal(
        tmp_path, f"[train]\nkeep = '{keep}'"
    )
    assert time.monotonic() - begun < 1


def test_steps_that_32_bits_do_not_count_are_refused():
    train = of(train__epochs=10**9, train__batch_size=1).train
    with pytest.raises(InputError, match=r"give fewer than 21,474,836 epochs, or a larger"):
        train.total_steps(100)
    # What the message says works.
    fewer = dataclasses.replace(train, epochs=21_474_835)
    assert fewer.total_steps(100) < 2**31


def test_a_device_or_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((Path("/dev/zero"), "a device"), (tmp_path / "pipe", "a pipe")):
        with pytest.raises(InputError, match=f"{path}: is {kind}, not a file; give a TOML file"):
            config_file.load(path)


scalars = st.one_of(
    st.integers(), st.floats(), st.booleans(), texts, st.dates(), st.times(),
    st.sampled_from([10**4000, -(2**63), 2**31, 1e30, -0.0, "1e-9999999", "0-999999999999"]),
)  # fmt: skip
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
keys = st.sampled_from([name.rpartition(".")[2] for name in config.flatten(Experiment())]) | texts
sections = st.sampled_from(["run", *(f.name for f in dataclasses.fields(Experiment))]) | texts


@settings(max_examples=60, deadline=1000)
@given(
    st.dictionaries(sections, values | st.dictionaries(keys, values, max_size=4), max_size=4).map(
        tomli_w.dumps
    )
    | texts
)
def test_any_text_is_an_experiment_or_refused_in_one_line(tmp_path_factory, text):
    path = written(tmp_path_factory.getbasetemp(), text)
    with suppress(InputError):
        assert isinstance(config.check(config_file.load(path)), Experiment)
