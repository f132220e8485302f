"""What a run's models predict on inputs that none of them trained on, and by a Laplace
approximation on the examples too. No JAX.

All of it lies in `RUN/trust/`, made by `score.py --trust`. KIND is a kind of inputs, or `fit`,
the held-out images on which temperatures are fitted:

| file | what | dtype and shape |
|---|---|---|
| `KIND.npy` | logits | float32 [N, M, K] |
| `KIND.json` | `title`, `examples` (M), `scale` and `digest` of the inputs | – |
| `KIND_labels.npy` | classes, −1 where an input has none | int32 [M] |
| `KIND_samples.npy` | the first few inputs, to look at | uint8 [≤ SAMPLES, H, W, C] |
| `KIND_probit.npy`, `KIND_sampled.npy` | logits of Laplace predictions | as KIND.npy |
| `KIND_probit.json` | `prior` (0: each model's own), `samples`, `digest` | – |
| `candidates_probit.npy`, … | the same of the examples, E in place of M | as KIND.npy |

The examples' plain logits are the run's own. The softmax of logits of the Laplace approximation is
its prediction.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from lira_jax.config import INPUT_KINDS
from lira_jax.errors import InputError
from lira_jax.run import run_dir
from lira_jax.run.parts import Product, is_there, read_record, read_rows
from lira_jax.score_set import ScoreSet
from lira_jax.storage import check_folder, names, read_array

FOLDER = "trust"
COMMAND = "score.py --trust"
CANDIDATES, FIT = "candidates", "fit"
# Inputs of each kind that are kept to look at.
SAMPLES = 8
# Predictions beside the plain ones, by the ending of their files.
LAPLACE = ("probit", "sampled")
# Inputs that are looked at together.
_CHUNK = 4_096


def plain(kind: str, classes: int, settings: Mapping[str, Any]) -> Product:
    """KIND.npy, a row for every model, and KIND.json."""
    arrays = {kind: (classes,)}
    return Product(arrays, f"{kind}_parts", COMMAND, settings, record_first=True)


def laplace(kind: str, classes: int, settings: Mapping[str, Any]) -> Product:
    """KIND_probit.npy and KIND_sampled.npy, with KIND_probit.json beside them."""
    arrays = {f"{kind}_{name}": (classes,) for name in LAPLACE}
    return Product(arrays, f"{kind}_laplace_parts", COMMAND, settings, record_first=True)


@dataclass(frozen=True, eq=False)
class Kind:
    """Predictions on inputs of one kind.

    Attributes:
        name: of its files.
        title: for people.
        scale: factor on the network's input.
        labels: −1 where an input has no class.
        samples: the first few inputs.
        logits: by `plain` and, where they were made, by LAPLACE.
    """

    name: str
    title: str
    scale: float
    labels: Int32[np.ndarray, " M"]
    samples: UInt8[np.ndarray, "S H W C"]
    logits: Mapping[str, Float32[np.ndarray, "N M K"]]


@dataclass(frozen=True, eq=False)
class Outputs:
    """All that `score.py --trust` made of a run.

    Attributes:
        kinds: inputs that no model trained on.
        fit: held-out images for temperatures; None where there are none.
        candidates: the examples' logits by LAPLACE; empty where they were not made.
    """

    kinds: tuple[Kind, ...]
    fit: Kind | None
    candidates: Mapping[str, Float32[np.ndarray, "N E K"]]


def command(run: Path) -> str:
    """What makes the outputs of a run."""
    return f"python score.py --run {shlex.quote(str(run))} --trust"


def read(run: Path, score_set: ScoreSet) -> Outputs | None:
    """What is there for all models of a run; None if nothing is. Arrays stay memory maps.

    Args:
        run: a run directory.
        score_set: its scores, from `score_files.read_score_set`.

    Raises:
        InputError: a damaged or foreign file.
    """
    folder = run / FOLDER
    check_folder(folder, f"delete it and run {command(run)} again")
    assert score_set.logits is not None
    models, examples, classes = score_set.logits.shape
    beside = tuple(f"_{end}" for end in ("labels", "samples", *LAPLACE))
    files = [file.rpartition(".") for file in names(folder)]
    made = {name for name, _, end in files if end in ("npy", "json") and not name.endswith(beside)}
    kinds = [
        kind
        for name in sorted(made - {CANDIDATES})
        if (kind := _kind(run, name, models, classes)) is not None
    ]
    candidates = _laplace(run, CANDIDATES, models, examples, classes)
    if not kinds and not candidates:
        return None
    return Outputs(
        tuple(sorted((kind for kind in kinds if kind.name != FIT), key=_order)),
        next((kind for kind in kinds if kind.name == FIT), None),
        candidates,
    )


def of_first(outputs: Outputs, count: int) -> Outputs:
    """The same with the first so many candidates, such as all but canaries."""
    kept = {name: logits[:, :count] for name, logits in outputs.candidates.items()}
    return replace(outputs, candidates=kept)


def _order(kind: Kind) -> tuple[int, str]:
    """As in tables: other data sets and generated images come last."""
    own = INPUT_KINDS.index(kind.name) if kind.name in INPUT_KINDS else len(INPUT_KINDS)
    return own, kind.name


def _kind(run: Path, name: str, models: int, classes: int) -> Kind | None:
    """One kind; None where it is not whole yet."""
    folder = run / FOLDER
    record = read_record(folder / f"{name}.json", f"delete {folder} and run {COMMAND} again")
    fits = record is not None and all(
        isinstance(record.get(key), kinds)
        for key, kinds in (("title", str), ("examples", int), ("scale", float), ("digest", str))
    )
    if record is None or not fits or record["examples"] < 1 or not abs(record["scale"]) < 2**31:
        raise _damaged(folder / f"{name}.json", "not as scoring writes it", run)
    count, remedy = record["examples"], f"run {command(run)} again"
    product = plain(name, classes, {})
    logits = _logits(run, folder / f"{name}.npy", models, count, classes, product)
    if logits is None:
        return None
    labels = read_array(
        folder / f"{name}_labels.npy", np.int32, (count,), remedy,
        about_inputs(run, name, "labels", record["digest"]),
    )  # fmt: skip
    # Temperatures are fitted to labels; of other inputs, all have one or none has.
    if labels.max() >= classes or labels.min() < (0 if name == FIT or labels.max() >= 0 else -1):
        raise _damaged(folder / f"{name}_labels.npy", f"not labels of {classes} classes", run)
    samples = read_array(
        folder / f"{name}_samples.npy", np.uint8, (min(count, SAMPLES), None, None, None), remedy,
        about_inputs(run, name, "samples", record["digest"]),
    )  # fmt: skip
    every = {"plain": logits} | _laplace(run, name, models, count, classes)
    return Kind(name, record["title"], record["scale"], labels, samples, every)


def _laplace(
    run: Path, name: str, models: int, count: int, classes: int
) -> dict[str, Float32[np.ndarray, "N M K"]]:
    """Logits by LAPLACE; none where they are not whole yet."""
    product, remedy = laplace(name, classes, {}), f"run {command(run)} again"
    paths = {kind: run / FOLDER / f"{name}_{kind}.npy" for kind in LAPLACE}
    if not all([is_there(path, product.record, remedy) for path in paths.values()]):
        return {}
    arrays = {
        kind: _logits(run, path, models, count, classes, product) for kind, path in paths.items()
    }
    return {kind: logits for kind, logits in arrays.items() if logits is not None}


def _logits(
    run: Path, path: Path, models: int, count: int, classes: int, product: Product
) -> Float32[np.ndarray, "N M K"] | None:
    """Finite logits of all models; None where some are missing yet."""
    remedy = f"run {command(run)} again, or give it --repair True"
    product = replace(product, binding={"run": run_dir.identity(run)})
    array = read_rows(path, (count, classes), models, remedy, product)
    for model, row in enumerate(array if array is not None else ()):
        for start in range(0, count, _CHUNK):
            bad = ~np.isfinite(row[start : start + _CHUNK]).all(axis=1)
            if bad.any():
                place = start + int(np.argmax(bad))
                raise _damaged(path, f"not finite at model {model}, input {place}", run)
    return array


def _damaged(path: Path, reason: str, run: Path) -> InputError:
    return InputError(f"{path}: damaged ({reason}); delete {path.parent} and run {command(run)}")


def about_inputs(run: Path, kind: str, what: str, digest: str) -> dict[str, Any]:
    """What KIND_labels.npy and KIND_samples.npy say about themselves.

    Args:
        what: `labels` or `samples`.
        digest: of the inputs.
    """
    return run_dir.binding(run, f"{kind}_{what}") | {"digest": digest}


def record_of(title: str, examples: int, scale: float, digest: str) -> dict[str, Any]:
    """What KIND.json tells."""
    return {"title": title, "examples": examples, "scale": scale, "digest": digest}
