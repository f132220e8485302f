"""Scores made elsewhere: .npz files, a target's, the public code's folders, compared results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from lira_jax import public_layout, score_set
from lira_jax.analysis import target as target_audit
from lira_jax.commands import attack
from lira_jax.config import AttackConfig
from lira_jax.data.membership import blocked_masks
from tests.fuzz import toolbox
from tests.fuzz.toolbox import ANY, REFUSE, Spoilt, Surface, Values, damage, special

N, E, Q, K = 4, 40, 2, 3


def score_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Everything that --scores may hold."""
    random = np.random.default_rng(seed)
    keep = blocked_masks(seed, N, E, 1, 2)
    labels = np.arange(E) % K
    logits = random.normal(0, 2, (N, E, K)).astype(np.float32)
    logits[:, np.arange(E), labels] += 2 * keep
    phi = score_set.logit_scaled(logits, labels)
    return {
        "scores": np.stack([phi, phi + random.normal(0, 0.1, phi.shape)], -1).astype(np.float32),
        "keep": keep,
        "labels": labels,
        "logits": logits,
        "merlin": random.random((N, E)).astype(np.float32),
        "gradient_norm": random.random((N, E)).astype(np.float32),
        "canary": np.arange(E) >= E - 12,
        "block": np.array(2),
    }


def of_score_set(read: score_set.ScoreSet) -> Values:
    names = ("scores", "keep", "labels", "logits", "merlin", "gradient_norm", "canary")
    arrays = {name: getattr(read, name) for name in names}
    given = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    return given | {"block": read.block}


def make_scores(folder: Path) -> None:
    np.savez(folder / "scores.npz", **score_arrays())


BAD_NUMBERS = (np.nan, np.inf, -np.inf)
ODD_NUMBERS = (1e38, -1e38, 3e38, 1e30, 1e-45, 1e6)


def spoil_values(random: Random, arrays: dict[str, Any], needed: tuple[str, ...]) -> Spoilt:
    """Change one of the arrays, in place of the name it has."""
    name = random.choice(list(arrays))
    array = np.array(arrays[name])
    kind = random.choice(("dtype", "dtype", "shape", "shape", "value", "value", "value", "gone"))
    if kind == "gone":
        del arrays[name]
        return Spoilt(f"without {name}", REFUSE if name in needed else ANY)
    if kind == "dtype":
        dtype = random.choice(
            ("f2", "f4", "f8", "f16", "c8", "i1", "u8", "i8", "?", "U3", "S3", "O", "M8[s]",
             "m8[s]", ">f4", "u1", ">i8")
        )  # fmt: skip
        try:
            with np.errstate(all="ignore"):
                arrays[name] = array.astype(dtype)
        except (TypeError, ValueError):
            arrays[name] = np.array(["x"] * array.size, object)
        bad = dtype in ("c8", "U3", "S3", "O", "M8[s]", "m8[s]") or arrays[name].dtype == object
        return Spoilt(f"{name} as {dtype}", REFUSE if bad else ANY)
    if kind == "shape":
        changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "flat": np.ravel, "short": lambda a: a[:-1] if a.ndim else a[None],
            "empty": lambda a: a[:0] if a.ndim else a[None][:0], "deep": lambda a: a[None],
            "long": lambda a: np.concatenate([a, a]) if a.ndim else np.stack([a, a]),
            "last": lambda a: a[..., :0] if a.ndim else a[None][:0], "turned": np.transpose,
            "wide": lambda a: a[..., None], "few": lambda a: a[:, :-1] if a.ndim > 1 else a[None],
            "none": lambda a: a[..., None][..., :0], "one": lambda a: a[:1] if a.ndim else a[None],
            "unit": lambda a: a[:, :1] if a.ndim > 1 else a[None],
        }  # fmt: skip
        change = random.choice(list(changes))
        changed = changes[change](array)
        # A score or logit less or more of each example is as good as any.
        free = (name in ("scores", "logits") and change in ("last",)) and changed.size
        same = changed.shape == array.shape or free or (name, change) == ("scores", "wide")
        arrays[name] = changed
        return Spoilt(f"{name} {change}: {changed.shape}", ANY if same else REFUSE)
    if not array.size:  # made so by an earlier change
        return Spoilt(f"{name} is empty", ANY)
    place = tuple(random.randrange(size) for size in array.shape)
    if array.dtype.kind == "f":
        number = random.choice(BAD_NUMBERS + ODD_NUMBERS)
        array[place if random.random() < 0.7 else ...] = number
        bad = number in BAD_NUMBERS[1:] or number != number
        if name in ("merlin", "gradient_norm"):
            bad = bad or number < 0 or (name == "merlin" and number > 1)
        arrays[name] = array
        return Spoilt(f"{name}{list(place)} = {number}", REFUSE if bad else ANY)
    if array.dtype.kind == "b":
        choice = random.choice(("all", "none", "2", "-1", "255", "one model", "one example"))
        wrong = array.astype(int)
        if choice in ("all", "none"):
            wrong[...] = choice == "all"
        elif choice.startswith("one"):
            wrong[(0,) if choice == "one model" else (Ellipsis, 0)] = 1
        else:
            wrong[place] = int(choice)
        arrays[name] = wrong
        bad = choice not in ("one example",) and not (name == "canary" and choice[0] in "no")
        # Unequal masks are no blocks of 2, which the file says they are.
        return Spoilt(f"{name}: {choice}", REFUSE if bad else ANY)
    number = random.choice((-1, 2**31, 2**63 - 1, 2**40, K, 99, -(2**63), 0, 1, 3, 7))
    array[place] = number
    arrays[name] = array
    most = K if name == "labels" else 10**9
    bad = not 0 <= number < most or (name == "block" and number in (0, 3, 7, 99))
    return Spoilt(f"{name}{list(place)} = {number}", REFUSE if bad else ANY)


def spoil_scores(random: Random, folder: Path) -> Spoilt:
    path, arrays = folder / "scores.npz", score_arrays()
    if random.random() < 0.5:
        return toolbox.spoil_zip(random, path, arrays, ("scores", "keep"))
    spoilt = spoil_values(random, arrays, ("scores", "keep"))
    np.savez(path, **arrays)
    if spoilt.what.startswith("block["):  # the attacks look at it, where they choose references
        return Spoilt(spoilt.what, ANY)
    return spoilt


def read_scores(folder: Path) -> Values:
    return of_score_set(score_set.check(score_set.read_npz(folder / "scores.npz")))


def read_attack(folder: Path) -> Values:
    """Through the whole of the attack stage; what it writes tells too much to compare."""
    path, out = folder / "scores.npz", folder / "out"
    attack.main(["--scores", str(path), "--out", str(out)])
    metrics = json.loads((out / "metrics.json").read_text())
    values = of_score_set(score_set.check(score_set.read_npz(path)))
    return values | {"attacks": len(metrics["attacks"])}


def spoil_for_attack(random: Random, folder: Path) -> Spoilt:
    """Values alone: what is damaged gets no further than `scores` does."""
    arrays = score_arrays()
    spoilt = [
        spoil_values(random, arrays, ("scores", "keep")) for _ in range(random.choice((1, 2)))
    ]
    np.savez(folder / "scores.npz", **arrays)
    rule = REFUSE if len(spoilt) == 1 and spoilt[0].verdict == REFUSE else ANY
    return Spoilt("; ".join(each.what for each in spoilt), rule)


# A target ---------------------------------------------------------------------------------------


def target_arrays() -> dict[str, np.ndarray]:
    arrays = score_arrays(5)
    return {"scores": arrays["scores"][0], "keep": arrays["keep"][0]}


def make_target(folder: Path) -> None:
    make_scores(folder)
    np.savez(folder / "target.npz", **target_arrays())


def spoil_target(random: Random, folder: Path) -> Spoilt:
    path, arrays = folder / "target.npz", target_arrays()
    if random.random() < 0.5:
        return toolbox.spoil_zip(random, path, arrays, ("scores",))
    spoilt = spoil_values(random, arrays, ("scores",))
    np.savez(path, **arrays)
    if spoilt.what.startswith("keep: ") and spoilt.what[6:] in ("all", "none", "one model"):
        return Spoilt(spoilt.what, ANY)  # who trained on everything is a target all the same
    return spoilt


def read_target(folder: Path) -> Values:
    scores = score_set.check(score_set.read_npz(folder / "scores.npz"))
    model = target_audit.read_target(folder / "target.npz", scores)
    audit = target_audit.audit(scores, model, AttackConfig(), progress=False)
    target_audit.write(audit, folder / "out")
    target_audit.summary(audit)
    return {"scores": np.asarray(model.scores), "keep": model.keep, "p": audit.p_value}


# The public code's folders ----------------------------------------------------------------------


def make_layout(folder: Path) -> None:
    arrays = score_arrays()
    for model in range(N):
        below = folder / f"experiment-{model}_{N}"
        for kind in ("scores", "logits"):
            (below / kind).mkdir(parents=True)
        np.save(below / "scores" / "0000000010.npy", arrays["scores"][model].astype(np.float64))
        np.save(below / "logits" / "0000000010.npy", arrays["logits"][model][:, None, None])
        np.save(below / "keep.npy", arrays["keep"][model])
    np.save(folder / "y_train.npy", arrays["labels"])


def spoil_layout(random: Random, folder: Path) -> Spoilt:
    files = sorted(path for path in folder.rglob("*.npy"))
    path, kind = random.choice(files), random.randrange(8)
    array = np.load(path)
    if kind == 0:
        content = path.read_bytes()[: random.randrange(path.stat().st_size)]
        path.write_bytes(content)
        return Spoilt(f"{path.relative_to(folder)} cut to {len(content)}", REFUSE)
    if kind == 1:
        below = random.choice((path, path, path.parent, folder / "experiment-1_4"))
        place = below if below != folder else path
        # A missing file of logits, labels or a folder is another folder, not a damaged one.
        found = special(random, place)
        return Spoilt(
            f"{place.relative_to(folder)}: {found}", ANY if "missing" in found else REFUSE
        )
    if kind in (2, 3):
        content, what = toolbox.npy_header(random, array)
        path.write_bytes(content)
        return Spoilt(f"{path.relative_to(folder)}: {what}", ANY)
    if kind == 4:  # no checksum: other numbers cannot be told
        return Spoilt(f"{path.relative_to(folder)}: {damage(random, path)}", ANY)
    if kind == 5:
        names = (
            f"experiment-{'9' * 5000}"[:200], "experiment-7_4", "experiment-01_4", "experiment-0",
            "experiment-0_99999999999", "experiment-٣_4", "experiment-5_0",
        )  # fmt: skip
        name = random.choice(names)
        shutil.copytree(folder / "experiment-0_4", folder / name)
        return Spoilt(f"and {name[:30]}", ANY)
    arrays = {"array": array}
    spoilt = spoil_values(random, arrays, ("array",))
    if not arrays:
        path.unlink()
        return Spoilt(f"without {path.relative_to(folder)}", ANY)
    np.save(path, arrays["array"])
    needed = path.name != "y_train.npy" and path.parent.name != "logits"
    bad = spoilt.verdict == REFUSE and needed and "array: " not in spoilt.what
    bad = bad and "=" in spoilt.what  # shapes: the layout knows several
    return Spoilt(f"{path.relative_to(folder)}: {spoilt.what}", REFUSE if bad else ANY)


def read_layout(folder: Path) -> Values:
    return of_score_set(score_set.check(public_layout.read(folder)))


# Compared results -------------------------------------------------------------------------------


def make_results(folder: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        below = folder / name
        below.mkdir()
        np.savez(below / "scores.npz", **score_arrays(seed))
        attack.main(["--scores", str(below / "scores.npz"), "--out", str(below / "attack")])
        for path in (below / "attack").iterdir():
            if path.name not in ("metrics.json", "roc.npz"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with every key or index of it."""
    if not isinstance(value, dict | list):
        return []
    places: list[tuple[Any, Any]] = []
    for key in value if isinstance(value, dict) else range(len(value)):
        places += [(value, key), *_places(value[key])]
    return places


JSON_VALUES = (
    None, True, -1, 0, 1e308, "x", "\x1b[31mred\x1b[0m", "=1+1", [], {}, [[]], 10**30, "NaN",
    float("nan"), float("inf"), "é" * 50, "<script>", "_{$\\", 2**63, [None] * 3,
)  # fmt: skip


def spoil_json(random: Random, path: Path) -> str:
    """Another value somewhere in a JSON file, or a key less."""
    table = json.loads(path.read_text())
    holder, key = random.choice(_places(table))
    if random.random() < 0.2 and isinstance(holder, dict):
        del holder[key]
        what = f"without {key}"
    else:
        holder[key] = random.choice(JSON_VALUES)
        what = f"{key} = {holder[key]!r}"
    path.write_text(json.dumps(table))
    return f"{path.name}: {what}"


def text_of_json(random: Random, path: Path) -> str:
    text = random.choice(
        ("", "[" * 100_000, "9" * 5000, "{", "null", "[]", "NaN", '{"schema": 2}', '"\\ud800"',
         '{"a":' * 5000, "7", "\ufeff{}")
    )  # fmt: skip
    path.write_text(text)
    return f"{path.name}: {text[:12]!r} × {len(text)}"


def spoil_results(random: Random, folder: Path) -> Spoilt:
    below = folder / random.choice(("one", "two")) / "attack"
    path = below / random.choice(("metrics.json", "metrics.json", "metrics.json", "roc.npz"))
    kind = random.randrange(6)
    if kind == 0:
        return Spoilt(special(random, path), REFUSE)
    if path.name == "roc.npz" and kind in (1, 2):
        with np.load(path) as file:
            arrays = dict(file)
        name = random.choice(("lira-online-shrinkage.fpr", "lira-online-shrinkage.tpr"))
        arrays[name] = random.choice(
            (arrays[name][:-1], arrays[name][:, None], arrays[name] * np.nan, arrays[name] + 2,
             arrays[name][:0], arrays[name].astype(complex), arrays[name][::-1], -arrays[name])
        )  # fmt: skip
        np.savez(path, **arrays)
        return Spoilt(f"{name} {arrays[name].dtype} {arrays[name].shape}", REFUSE)
    if path.name == "roc.npz":
        return Spoilt(damage(random, path))
    if kind == 1:
        return Spoilt(text_of_json(random, path), REFUSE)
    if kind == 2:
        return Spoilt(damage(random, path), ANY)
    return Spoilt(spoil_json(random, path), ANY)


def read_results(folder: Path) -> Values:
    words = [str(folder / "one"), str(folder / "two"), "--out", str(folder / "out")]
    attack.main(["compare", *words])
    return {"table": (folder / "out" / "compare.csv").read_text()}


SURFACES = [
    Surface("scores", 15, make_scores, spoil_scores, read_scores),
    Surface("attack", 1.5, make_scores, spoil_for_attack, read_attack),
    Surface("target", 7, make_target, spoil_target, read_target),
    Surface("public-layout", 8, make_layout, spoil_layout, read_layout),
    Surface("compare", 5, make_results, spoil_results, read_results),
]
