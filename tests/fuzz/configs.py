"""Words from elsewhere: TOML files, command lines, and code that a user names."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from random import Random

from lira_jax import config, config_file, user_code
from lira_jax.analysis import analyse
from lira_jax.commands import attack, score, train
from lira_jax.commands.entry import Ended
from lira_jax.commands.parsing import parse
from lira_jax.config import DataConfig, Experiment
from lira_jax.data import datasets
from lira_jax.errors import InputError
from lira_jax.run import run_dir
from tests.fuzz.toolbox import ANY, REFUSE, Spoilt, Surface, Values, damage, special

TOML = """
seed = 3
[data]
limit = 120
leave_out = ["ship"]
[train]
models = 4
keep = "1/2"
learning_rate = 0.1
[label_only]
rotations = [4.0]
targets = []
[attack]
temperatures = ["fit", 0.5]
[run]
data_digest = "52c0a89b6769186451c78ae4798cec1333649d1cdba21d5f87619aeeb59b49da"
lira_jax = "0.1.0"
"""

# Values as TOML and as words of a command line, none of which is fit for a number.
UNFIT = (
    "nan", "inf", "-inf", "1e999", "9" * 4300, "9" * 5000, "-" + "9" * 400, "2147483648e99",
    "1e-9999999", "0x" + "f" * 400, "1_0_0_", "--1",
)  # fmt: skip
VALUES = (
    *UNFIT, "1", "0", "-1", "2147483648", "4294967296", "1e30", "1e9", "0.5", "true", "''", "[]",
    "'x'", "{}", "[[]]", "[1, 'a']", "{a = 1}", "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00",
    "'1/2'", "'1e-9999999'", "'1/" + "9" * 30 + "'", "'" + "9" * 5000 + "/3'", "'1e9999999'",
    "'\\u0000'", '"\\u0000"', '"\\u001b[31m"', "'é'", '"\\U0001F600"', "'" + "x" * 10_000 + "'",
    "'builtins:exit'", "'os:_exit'", "'sys:exit'", "'a:b'", "'..:x'", "':'", "'builtins:print'",
    "'/dev/zero'", "'0-99999999'", "'0-999999999999'", "['1-9999999999']", "'1,1'", "','",
    "[" * 3000 + "]" * 3000, "[" * 300 + "]" * 300, "{a=" * 800 + "1" + "}" * 800,
    "'" + "1," * 50_000 + "'", "'fit'", "'nan'", "['nan']", "[nan]", "[inf]", "[1e400]",
    "'0x10'", "'１２'", "['a=b']", "['a=a=a']", "['../x=/dev/zero']", "'all'", "['all', 'test']",
)  # fmt: skip
# Sections that a stage uses as numbers: too much of them is refused before anything is made.
TOO_MUCH = {
    "train.models": ("2147483648", "1e9", "9" * 30), "network.width": ("1000000000", "9" * 30),
    "network.depth": ("1000000000", "9" * 30), "train.epochs": ("9" * 30,),
    "train.batch_size": ("9" * 30,), "train.learning_rate": ("inf", "nan", "1e999"),
    "train.keep": ("'1e-9999999'", "'1e9999999'", "'" + "9" * 5000 + "/3'", "'0/1'", "'1/0'"),
    "seed": ("4294967296", "-1", "0.5", "9" * 5000), "data.canaries": ("9" * 30,),
    "data.limit": ("9" * 30, "-1"), "attack.queries": ("9" * 30, "-1"),
    "label_only.targets": ("['0-999999999999']", "'0-999999999999'", "'" + "9" * 5000 + "'"),
    "label_only.rotations": ("[nan]", "[inf]", "'nan'", "[1e400]"),
    "attack.temperatures": ("[nan]", "[1e400]", "'inf'"), "attack.fpr": ("nan", "2.0", "0.0"),
}  # fmt: skip
RUN_VALUES = (
    "1979-05-27", "nan", "inf", "[]", "{}", "1", "true", "''", '"\\u001b[31m"', "[[[]]]",
    "1979-05-27T07:32:00Z", "9" * 4000, "'x'",
)  # fmt: skip


def keys() -> list[str]:
    return list(config.flatten(Experiment()))


def _line(key: str, value: str) -> str:
    section, _, name = key.rpartition(".")
    return f"{name} = {value}\n" if not section else f"[{section}]\n{name} = {value}\n"


def make_toml(folder: Path) -> None:
    (folder / "config.toml").write_text(TOML)


def spoil_toml(random: Random, folder: Path) -> Spoilt:
    path = folder / "config.toml"
    kind = random.choice(
        ("damage", "damage", "value", "value", "value", "much", "much", "key", "bytes", "special",
         "run", "swap")
    )  # fmt: skip
    if kind == "damage":
        return Spoilt(damage(random, path), ANY)
    if kind == "value":
        key, value = random.choice(keys()), random.choice(VALUES)
        path.write_text(_line(key, value))
        what = f"{key} = {value[:30]} × {len(value)}"
        unfit = value in UNFIT[:4] or value.startswith(("1979", "07:", "[[", "{"))
        return Spoilt(what, REFUSE if unfit else ANY)
    if kind == "much":
        key = random.choice(list(TOO_MUCH))
        value = random.choice(TOO_MUCH[key])
        path.write_text(_line(key, value))
        return Spoilt(f"{key} = {value[:30]} × {len(value)}", REFUSE)
    if kind == "key":
        key = random.choice(
            ('"\\u001b[31mred"', '"\\u0000"', "'a b'", "x" * 5000, "a.b.c.d", '"é"', "seed.x",
             "train", "data.path.x", '""', '"\\n\\n"', ".".join("a" * 900), "run.x", '"\\u202e"')
        )  # fmt: skip
        path.write_text(f"{key} = 1\n")
        return Spoilt(f"key {key[:20]}", ANY if key.startswith("run") else REFUSE)
    if kind == "bytes":
        content = random.choice(
            (b"\xff\xfe", b"\x00" * 99, random.randbytes(99), "seed = 3".encode("utf-16"),
             b"[" * 9999, b"a" * 10**6, b"[x]\n" * 2, b"seed = 3\r\x00",
             b"[[train]]", b"train = [{}]")
        )  # fmt: skip
        path.write_bytes(content)
        return Spoilt(f"bytes {content[:9]!r}", REFUSE)
    if kind == "special":
        return Spoilt(special(random, path), REFUSE)
    if kind == "run":
        key, value = random.choice(("data_digest", "jax", "x", "dp_epsilon")), ""
        value = random.choice(RUN_VALUES)
        if random.random() < 0.2:
            path.write_text(TOML.partition("[run]")[0] + f"run = {value}\n")
            return Spoilt(f"run = {value[:20]}", ANY)
        path.write_text(TOML.partition("[run]")[0] + f"[run]\n{key} = {value}\n")
        bad = key == "data_digest" and value[0] not in "'\""
        return Spoilt(f"run.{key} = {value[:20]}", REFUSE if bad else ANY)
    lines = TOML.splitlines()
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    path.write_text("\n".join(lines))
    return Spoilt(f"lines {one} and {other} swapped", ANY)


def _of(experiment: Experiment) -> Values:
    return {"experiment": experiment}


def read_toml(folder: Path) -> Values:
    """As a file given to training, and as the one in a received run, with what the report tells."""
    experiment = config.check(config_file.load(folder / "config.toml"))
    config_file.to_toml(experiment, {})
    if "[run]" in (folder / "config.toml").read_text(encoding="utf-8-sig"):
        run_dir.read_config(folder)
        about = analyse.about_run(folder, experiment)
        dataclasses.astuple(about)
    return _of(experiment)


# Command lines ----------------------------------------------------------------------------------

COMMANDS = {"train": train, "score": score, "attack": attack}
WORDS = (
    "", "-", "--", "---", "-h", "--help", "--run", "--out", "--scores", "--target", "--shard",
    "--repair", "--trust", "--label-only", "compare", "--protocol", "--null_check", "é", "\x1b[31m",
    "--run=", "--scores=", "--x" * 9, "@file", "--attack.extra", "\ud800", "a\nb", "--tyro-print",
)  # fmt: skip


def make_words(folder: Path) -> None:
    (folder / "config.toml").write_text(TOML)


def spoil_words(random: Random, folder: Path) -> Spoilt:
    """A command line that no command can follow: what it needs is not there, or is no good."""
    command = random.choice(list(COMMANDS))
    words = [command]
    for _ in range(random.randint(0, 5)):
        kind = random.randrange(3)
        if kind == 0:
            words.append(random.choice(WORDS))
        else:
            value = random.choice(VALUES).strip("'\"")
            words += [f"--{random.choice(keys())}", value]
    shape = random.randrange(4)
    if shape == 0:
        places = ("", str(folder), "/dev/zero", "/dev/null/x", "gs://", "\0", "ftp://x", "x" * 5000)
        words += ["--run", random.choice((*places, str(folder / "none"), "~"))]
    elif shape == 1:
        words += ["--scores", str(folder / "none.npz"), "--out", random.choice(("", "x\0"))]
    (folder / "words").write_bytes("\x01".join(words).encode("utf-8", "surrogatepass"))
    (folder / "config.toml").unlink()  # so that nothing has all it needs
    return Spoilt(repr(words)[:300], REFUSE)


def read_words(folder: Path) -> Values:
    path = folder / "words"
    if not path.exists():
        return _of(config_file.load(folder / "config.toml"))
    command, *words = path.read_bytes().decode("utf-8", "surrogatepass").split("\x01")
    try:
        COMMANDS[command].main(words)
    except Ended as end:
        if end.code == 0 and {"-h", "--help"} & set(words):  # that was asked for
            raise InputError("help") from None
        raise
    return {"done": words}


# Values on the command line, as far as they are parsed and checked -----------------------------


def spoil_flags(random: Random, folder: Path) -> Spoilt:
    key = random.choice(list(TOO_MUCH) if random.random() < 0.5 else keys())
    much = key in TOO_MUCH and random.random() < 0.7
    value = random.choice(TOO_MUCH[key] if much else VALUES).strip("'\"")
    (folder / "words").write_text(f"--{key}\x01{value}")
    return Spoilt(
        f"--{key} {value[:40]} × {len(value)}", REFUSE if much and "[" not in value else ANY
    )


def read_flags(folder: Path) -> Values:
    """What training would begin with."""
    path = folder / "words"
    words = path.read_text().split("\x01") if path.exists() else []
    parsed = parse(train.Arguments("run", Experiment()), "", words)
    return _of(config.check(parsed.experiment))


# Code that a user names -------------------------------------------------------------------------

BODIES = (
    "raise KeyError('x')", "raise SystemExit", "raise SystemExit(0)", "raise SystemExit('x')",
    "raise SystemExit(2)", "raise KeyboardInterrupt", "raise GeneratorExit", "raise BaseException",
    "raise RecursionError", "raise MemoryError", "raise StopIteration",
    "raise OSError(2, 'x', 'y')",
    "raise BrokenPipeError", "exit()", "f = lambda: f(); f()", "1/0", "raise Exception('a\\nb')",
    "raise type('E', (Exception,), {'__str__': lambda self: 1/0})()", "import nowhere",
    "raise UnicodeDecodeError('utf-8', b'', 0, 1, 'x')", "assert False", "int('9' * 5000)",
    "raise ExceptionGroup('g', [KeyError()])", "raise BaseExceptionGroup('g', [SystemExit()])",
    "raise Warning", "raise SyntaxError", "raise type('E', (BaseException,), {})()",
    "raise TimeoutError", "raise NotImplementedError", "import sys; sys.exit()",
)  # fmt: skip
RETURNS = (
    "None", "7", "()", "(1, 2, 3, 4)", "{}", "{'x_train': 1, 'y_train': 2}", "'abcd'",
    "iter('abcd')",
    "[None] * 4", "{'x_train': None, 'y_train': None}", "print", "float('nan')", "[[[]]] * 4",
    "object()", "(x for x in 'abcd')", "{'x_train': [], 'y_train': []}", "10**5000",
    "type('D', (), dict.fromkeys(('x_train', 'y_train', 'x_test', 'y_test', 'classes')))()",
    "type('D', (), {'__getattr__': lambda self, name: 1/0})()",
)  # fmt: skip
NAMES = (
    "builtins:exit", "builtins:quit", "sys:exit", "os:abort_", "builtins:input", ":f", "a:", ":",
    "os.path:", "..a:f", "a b:f", "builtins:help", "builtins:breakpoint", "é:f", "a:f:g",
    "this.is.nowhere:f", "builtins:None", "sys:path", "\x1b[31m:f", "builtins:print",
    "builtins:int",
    "antigravity_:f", "os:getcwd", "builtins:BaseException", "builtins:SystemExit", "time:time",
)  # fmt: skip


CODE = """
import numpy as np

def f():
    x = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
    return x, np.arange(12) % 3, None, None
"""


def make_code(folder: Path) -> None:
    (folder / "fuzzed_code.py").write_text(CODE)
    (folder / "name").write_text("fuzzed_code:f")


def spoil_code(random: Random, folder: Path) -> Spoilt:
    path, kind = folder / "fuzzed_code.py", random.randrange(5)
    if kind == 0:
        body = random.choice(BODIES)
        path.write_text(f"{body}\ndef f():\n    pass\n")
        return Spoilt(f"module: {body}", REFUSE)
    if kind == 1:
        body = random.choice(BODIES)
        path.write_text(f"def f(*_):\n    {body}\n")
        return Spoilt(f"function: {body}", REFUSE)
    if kind == 2:
        value = random.choice(RETURNS)
        path.write_text(f"def f(*_):\n    return {value}\n")
        return Spoilt(f"returns {value}", REFUSE)
    if kind == 3:
        name = random.choice(NAMES)
        (folder / "name").write_text(name)
        return Spoilt(f"name {name!r}", REFUSE)
    return Spoilt(damage(random, path), ANY)


def read_code(folder: Path) -> Values:
    """The user's function as a data source and, without being called, as an attack."""
    name = (folder / "name").read_text()
    sys.path.insert(0, str(folder))
    for known in [known for known in sys.modules if known.startswith("fuzzed_code")]:
        del sys.modules[known]
    sys.dont_write_bytecode = True
    try:
        user_code.import_function(name, "attack.extra")
        data = datasets.load(DataConfig(name=name))
    except SystemExit as end:
        raise RuntimeError(f"the user's code ended the program: {end!r}") from None
    except KeyboardInterrupt:  # whoever raises it, it is a Ctrl-C
        raise InputError("stopped") from None
    finally:
        sys.path.remove(str(folder))
        sys.path_importer_cache.pop(str(folder), None)
    return {"x": data.x_train, "y": data.y_train}


SURFACES = [
    Surface("toml", 22, make_toml, spoil_toml, read_toml),
    Surface("command-line", 6, make_words, spoil_words, read_words),
    Surface("flags", 5, make_words, spoil_flags, read_flags),
    Surface("user-code", 6, make_code, spoil_code, read_code),
]
