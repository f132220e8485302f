"""Code that only a run names is imported if the user says so; what is shown steers no terminal."""

from __future__ import annotations

import re
import shlex
import sys

import numpy as np
import pytest

from lira_jax.commands import attack, score, train
from lira_jax.errors import visible
from lira_jax.run import run_dir
from tests.commands.conftest import TRUST_CODE

NETWORK = "tests.small_networks:network"


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """Name code of a stranger's in a run's own file; whether it has been imported since."""
    (tmp_path / "of_a_stranger.py").write_text(
        "import numpy as np\n"
        "def attack(score_set, rule, config, progress):\n"
        "    return {'theirs': np.zeros(score_set.keep.shape)}\n"
        "def data():\n    raise ValueError('imported')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "of_a_stranger", raising=False)

    def name(run, key, old, new):
        path = run / run_dir.CONFIG
        text = path.read_text()
        assert f'{key} = "{old}"' in text
        path.write_text(text.replace(f'{key} = "{old}"', f'{key} = "{new}"'))
        return lambda: "of_a_stranger" in sys.modules

    return name


@pytest.mark.parametrize("command", [train, score])
def test_a_network_that_only_the_run_names_needs_the_flag(refused, call, run, command):
    message = refused(command, "--run", run, trust_code=False)
    assert message == (
        f'{run}/config.toml: network.arch = "{NETWORK}" is code, which this command would run; '
        "look at it, and if you trust it give --trust-code True"
    )
    for words in (["--trust-code", "True"], ["--trust_code"]):
        assert call(command, "--run", run, *words, trust_code=False).code == 0
    assert refused(command, "--run", run, "--trust-code", "False", trust_code=False) == message


def test_what_the_user_names_needs_no_flag(call, run, toml):
    for words in ([toml], ["--network.arch", NETWORK]):
        assert call(train, *words, "--run", run, trust_code=False).code == 0


def test_weights_of_a_run_that_names_code_need_the_flag(refused, run, toml, tmp_path, strange):
    config = tmp_path / "mine.toml"
    config.write_text(toml.read_text())
    imported = strange(run, "arch", NETWORK, "of_a_stranger:network")
    words = [config, "--run", tmp_path / "new", "--defence.transfer_from", run]
    message = refused(train, *words, trust_code=False)
    assert f'{run}/config.toml: network.arch = "of_a_stranger:network" is code' in message
    assert not imported()
    assert "has no function 'network'" in refused(train, *words, TRUST_CODE, trust_code=False)


@pytest.mark.usefixtures("sketched", "few_attacks")
def test_an_attack_that_only_the_run_names_needs_the_flag(refused, call, run, strange):
    imported = strange(run, "extra", "", "of_a_stranger:attack")
    message = refused(attack, "--run", run)
    assert f'{run}/config.toml: attack.extra = "of_a_stranger:attack" is code' in message
    assert not imported()
    # Ways out: another attack, the same by one's own word, the flag.
    assert call(attack, "--run", run, "--attack.extra", "").code == 0
    assert not imported()
    assert call(attack, "--run", run, "--attack.extra", "of_a_stranger:attack").code == 0
    outcome = call(attack, "--run", run, *shlex.split(re.search("--trust-code True", message)[0]))
    assert outcome.code == 0
    assert imported()


@pytest.mark.usefixtures("sketched", "few_attacks")
def test_data_that_only_the_run_names_cost_an_attack_its_pictures_alone(call, run, strange):
    imported = strange(run, "name", "digits", "of_a_stranger:data")
    assert call(attack, "--run", run).code == 0
    assert not imported()
    page = (run / "attack" / "report.html").read_text()
    assert "is code that the run names; to run it, give --trust-code True" in page
    assert call(attack, "--run", run, TRUST_CODE).code == 0
    assert imported()


@pytest.mark.parametrize("name", ["builtins:exit", "builtins:quit", "sys:exit"])
def test_code_that_ends_the_program_is_a_mistake(refused, toml, tmp_path, name):
    message = refused(train, toml, "--run", tmp_path / "run", "--data.name", name)
    assert message.startswith(f'data.name = "{name}": SystemExit')
    assert message.endswith("it must work without arguments")


def test_an_exit_that_comes_from_anywhere_else_is_a_mistake_too(call, toml, monkeypatch):
    from lira_jax import training

    monkeypatch.setattr(training, "train", lambda *_, **__: sys.exit(0))
    code, _, err = call(train, toml, "--run", "r")
    assert code == 2
    assert err.startswith("error: SystemExit(0): something ended the program; take its exit out")


@pytest.mark.parametrize("empty", ["", " ", "\t"])
def test_an_empty_word_is_no_path(refused, run, tmp_path, monkeypatch, empty):
    monkeypatch.chdir(tmp_path)
    for command, words, flag in (
        (train, ["c.toml", "--run", empty], "--run"),
        (train, [empty, "--run", "r"], "one of the words"),
        (train, ["c.toml", "--run", "r", f"--shard={empty}"], "--shard"),
        (score, ["--run", empty], "--run"),
        (attack, ["--run", run, "--out", empty], "--out"),
        (attack, ["--run", run, f"--out={empty}"], "--out"),
        (attack, ["--scores", empty, "--out", "o"], "--scores"),
        (attack, ["--run", run, "--target", empty], "--target"),
        (attack, ["compare", run, empty, "--out", "o"], "one of the words"),
        (attack, ["compare", run, run, "--out", empty], "--out"),
    ):
        message = refused(command, *words)
        assert message == f"{flag}: is empty; give it a value, or leave it out"


def test_escape_sequences_are_shown_and_not_obeyed(call, refused, run, tmp_path):
    steering = "\x1b]0;owned\x07\x9b2J\u202e"
    path = tmp_path / "some.toml"
    key = steering.encode("unicode_escape").decode().replace("\\x", "\\u00")
    path.write_text(f'"{key}" = 1')
    message = refused(train, path, "--run", run)
    assert f"unknown key `{visible(steering)}`" in message
    assert "\\x1b]0;owned\\x07\\x9b2J\\u202e" in message
    place = tmp_path / f"run{steering}"
    assert visible(str(place)) in refused(score, "--run", place)


@pytest.mark.usefixtures("sketched", "few_attacks")
def test_names_in_what_is_printed_steer_no_terminal(call, run, tmp_path):
    out = tmp_path / "o\x1b[2Jut"
    code, text, _ = call(attack, "--run", run, "--out", out)
    assert code == 0
    assert "\x1b" not in text
    assert visible(str(out)) in text


def test_help_is_in_colours_on_a_terminal_all_the_same(monkeypatch):
    from lira_jax.commands.streams import in_colours, shown

    with shown() as (out, _):
        print("\x1b[1mbold\x1b[0m", end="")
        with in_colours():
            assert out.coloured
        assert not out.coloured


@pytest.mark.parametrize("text", ["\r 50 %|####", "\n\x1b[A", "\x1b[A", "\r"])
def test_progress_bars_still_move(capsys, text):
    from lira_jax.commands.streams import shown

    with shown():
        sys.stderr.write(text)
        sys.stderr.write(text + "\x1b[2J\r")
    first, rest = text, visible("\x1b[2J\r")
    got = capsys.readouterr().err
    assert got.startswith(first)
    assert got.endswith(rest)


def test_two_scores_of_one_target_go_where_they_are_told(call, run, tmp_path):
    scores = np.load(run / "scores.npy")
    np.savez(tmp_path / "mine.npz", scores=scores[0])
    words = ["--run", run, "--target", tmp_path / "mine.npz", "--attack.fpr", "0.1"]
    assert call(attack, *words, "--out", tmp_path / "a").code == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        ".lock-attack", "target.csv", "target.json"
    ]  # fmt: skip
