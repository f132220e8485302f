"""What is asked of live models for label-only attacks, and what they answered. No JAX.

All of it lies in `RUN/label_only/`, made by `score.py --label-only`. Arrays have examples first,
[E, N, …], since an example is finished under all models together, and are read as [N, E, …]:

| file | what of each example and model | shape |
|---|---|---|
| `models.json` | `sources` and `targets`: numbers of the models asked, sources first | – |
| `correct.npy` | is the image itself given its label? 0 or 1 | [E, N] |
| `rotation.npy` | the same of each view: identity, then −r and r for each angle | [E, N, 1 + 2R] |
| `translation.npy` | the same: identity, the 4d shifts of each distance d | [E, N, 1 + Σ 4d] |
| `noise.npy` | share of noisy copies given the label, for each strength | [E, N, S] |
| `flips.npy` | share of copies with flipped features given the label | [E, N, P] |
| `boundary.npy` | distance reached within each number of queries | [E, N, C] |
| `boundary_queries.npy` | label queries spent on it, exactly | [E, N] |
| `combined.npy` | distance of each translated copy, identity first | [E, N, 1 + 4d] |
| `combined_queries.npy` | label queries spent on each of these, exactly | [E, N, 1 + 4d] |
| `carlini_wagner.npy` | distance found with gradients | [E, N] |
| `features.npy` | the last layer's inputs, of source models | [E, N, F] |
| `NAME.json` | the settings that each was made with, see SETTINGS | – |

Distances are L2 norms in units of images in [0, 1]; 0 where the image itself is not given its
label.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32

from lira_jax.config import LabelOnlyConfig
from lira_jax.errors import InputError
from lira_jax.fields import refusal
from lira_jax.run import run_dir
from lira_jax.run.parts import Product, is_there, read_record, recorded
from lira_jax.score_set import ScoreSet
from lira_jax.storage import check_folder, names, read_array, refuse_other

FOLDER = "label_only"
COMMAND = "score.py --label-only"
MODELS = "models.json"
# Distances are kept at those of these numbers of queries that lie below the budget, and at it.
CHECKPOINTS = (100, 200, 400, 700, 1000, 1500, 2500, 5000, 10_000, 25_000)
# What NAME.json holds for each array, beside the `examples` asked about (E).
SETTINGS: dict[str, tuple[str, ...]] = {
    "correct": (),
    "rotation": ("rotations",),
    "translation": ("translations",),
    "noise": ("noise", "copies"),
    "flips": ("flips", "copies"),
    "boundary": ("checkpoints",),
    "combined": ("distance", "budget"),
    "carlini_wagner": ("steps",),
    "features": (),
}

# Every array, in the order of the table above.
ARRAYS = (
    "correct", "rotation", "translation", "noise", "flips", "boundary", "boundary_queries",
    "combined", "combined_queries", "carlini_wagner", "features",
)  # fmt: skip
# The largest answer; distances have no largest.
_MOST = {"correct": 1.0, "rotation": 1.0, "translation": 1.0, "noise": 1.0, "flips": 1.0}
# Settings that are lists of numbers; all others are numbers.
_LISTS = ("rotations", "translations", "noise", "flips", "checkpoints")
# Examples that are looked at together.
_CHUNK = 4_096


@dataclass(frozen=True)
class Asked:
    """What is asked of which models and examples.

    Attributes:
        sources, targets: numbers of models.
        examples: the first so many are asked about.
        boundary_examples: of these, distances of the first so many.
        rotations, noise, flips: the lists of the configuration.
        translations: likewise.
        checkpoints: numbers of queries after which the distance is kept, the budget last; empty for
            no distances.
    """

    sources: tuple[int, ...]
    targets: tuple[int, ...]
    examples: int
    boundary_examples: int
    rotations: tuple[float, ...]
    translations: tuple[int, ...]
    noise: tuple[float, ...]
    flips: tuple[float, ...]
    checkpoints: tuple[int, ...]

    @property
    def models(self) -> tuple[int, ...]:
        """All models asked, sources first."""
        return self.sources + self.targets


@dataclass(frozen=True)
class Answers:
    """One array of answers and what it was made with.

    Attributes:
        values: [N, E, …], of the models asked and the first examples; a view of a memory map.
        settings: by name, what NAME.json tells.
    """

    values: Float32[np.ndarray, "N E ..."]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class LabelAnswers:
    """Everything that the models of a run answered, as the attack stage takes it.

    Attributes:
        origin: the folder, for messages.
        models: numbers of the models asked; the first `sources` are source models.
        sources: how many.
        block: models per block of the run; targets of one block are resampled together.
        keep: who trained on what, bool [N, E], of the models asked, all examples of the run.
        labels: true labels of all examples, int [E].
        scores: φ of the image itself under the models asked, float [N, E], which no label-only
            attack sees.
        logits: likewise, float [N, E, K].
        answers: by the names of files, those that are there.
    """

    origin: str
    models: tuple[int, ...]
    sources: int
    block: int
    keep: Bool[np.ndarray, "N E"]
    labels: Int32[np.ndarray, " E"]
    scores: Float32[np.ndarray, "N E"]
    logits: Float32[np.ndarray, "N E K"]
    answers: Mapping[str, Answers]


def ask(config: LabelOnlyConfig, models: int, examples: int, block: int) -> Asked:
    """What a configuration asks of N models in blocks, on E examples; lists in ascending order.

    Raises:
        InputError: models or examples that the run does not have, or a source model among the
            targets or in a target's block.
    """
    sources = config.sources
    if not sources:
        raise refusal("label_only.sources", sources, "name at least one source model, such as 0")
    for side in ("sources", "targets"):
        numbers = getattr(config, side)
        beyond = next((n for n in numbers if not 0 <= n < models), None)
        if beyond is not None:
            reason = f"{beyond} is not among the models 0 to {models - 1}"
            raise refusal(f"label_only.{side}", numbers, reason)
    used = {n // block for n in sources}
    targets = config.targets or tuple(n for n in range(models) if n // block not in used)
    if not targets:
        reason = (
            f"leaves no target of {models} models, since every block holds a source; name fewer "
            "sources or train more models"
        )
        raise refusal("label_only.sources", sources, reason)
    both = sorted(set(sources) & set(targets))
    if both:
        raise InputError(
            f"label_only.targets: model {both[0]} is a source model too; the attacker tunes on "
            "sources, so name other targets"
        )
    beside = next((n for n in targets if n // block in used), None)
    if beside is not None:
        raise InputError(
            f"label_only.targets: model {beside} is in the block of a source model, whose training "
            f"set tells its own; name models of other blocks of {block}"
        )
    counts = {}
    for name, most in (("examples", examples), ("boundary_examples", config.examples or examples)):
        value = getattr(config, name)
        if value > most:
            raise InputError(f"label_only.{name} = {value}: there are only {most}")
        counts[name] = value or most
    checkpoints = (*(c for c in CHECKPOINTS if c < config.budget), config.budget)
    return Asked(
        sources=sources,
        targets=targets,
        examples=counts["examples"],
        boundary_examples=counts["boundary_examples"],
        rotations=tuple(sorted(config.rotations)),
        translations=tuple(sorted(config.translations)),
        noise=tuple(sorted(config.noise)),
        flips=tuple(sorted(config.flips)),
        checkpoints=checkpoints if config.budget else (),
    )


def shifts(distance: int) -> list[tuple[int, int]]:
    """The 4d shifts (i, j) with |i| + |j| = d, in order (LabelOnly, section 4.2)."""
    span = range(-distance, distance + 1)
    return [(i, j) for i in span for j in span if abs(i) + abs(j) == distance]


def command(run: Path) -> str:
    """What makes the answers of a run."""
    return f"python score.py --run {shlex.quote(str(run))} --label-only"


def read(run: Path, score_set: ScoreSet) -> LabelAnswers | None:
    """What the models of a run answered, as far as it is complete; None if nothing was asked yet.

    Arrays stay memory maps. What is not there for all examples and models is not there yet.

    Args:
        run: a run directory.
        score_set: its scores, from `score_files.read_score_set`.

    Raises:
        InputError: a damaged or foreign file, models that the run does not have, or so few examples
            that the source models or the targets have trained on all of them, or on none.
    """
    folder = run / FOLDER
    check_folder(folder, _anew(folder))
    asked = read_models(run)
    if asked is None:
        if there := [name for name in names(folder) if name.endswith((".npy", ".json"))]:
            raise _damaged(folder / MODELS, f"missing, with {there[0]} beside it", folder)
        return None
    models, examples = score_set.keep.shape
    sources, targets = (_numbers_of(folder, asked, side, models) for side in ("sources", "targets"))
    both = (*sources, *targets)
    if len(set(both)) < len(both):
        raise _damaged(folder / MODELS, "names a model twice", folder)
    assert score_set.block is not None
    if {n // score_set.block for n in sources} & {n // score_set.block for n in targets}:
        raise _damaged(folder / MODELS, "a target in the block of a source model", folder)
    arrays = {
        name: array
        for name in ARRAYS
        if (array := _read(run, name, sources, targets, examples)) is not None
    }
    if not arrays:
        return None
    assert score_set.labels is not None
    assert score_set.logits is not None
    chosen = list(both)
    answers = LabelAnswers(
        origin=str(folder),
        models=both,
        sources=len(sources),
        block=score_set.block,
        keep=score_set.keep[chosen],
        labels=score_set.labels,
        scores=score_set.scores[chosen, :, 0],
        logits=score_set.logits[chosen],
        answers=arrays,
    )
    for name, array in arrays.items():
        words = tells_nothing(answers.keep[:, : array.values.shape[1]], len(sources))
        if words:
            raise InputError(
                f"{folder / name}.npy: {words}; delete it and {name.removesuffix('_queries')}.json "
                f"beside it, and ask about more: {command(run)} --label_only.examples 0 "
                "--label_only.boundary_examples 0"
            )
    return answers


def tells_nothing(keep: Bool[np.ndarray, "N E"], sources: int) -> str:
    """Why nothing can be told of these examples, whose members the first models, the sources, and
    the other models have seen; empty if something can."""
    for side, seen in (("source models", keep[:sources]), ("targets", keep[sources:])):
        if seen.all() or not seen.any():
            word = "all" if seen.all() else "none"
            return f"the {side} trained on {word} of the {keep.shape[1]} examples asked about"
    return ""


def of_first(answers: LabelAnswers, count: int) -> LabelAnswers:
    """The answers about the first so many examples of the run, such as all but canaries."""
    return replace(
        answers,
        keep=answers.keep[:, :count],
        labels=answers.labels[:count],
        scores=answers.scores[:, :count],
        logits=answers.logits[:, :count],
        answers={
            name: replace(array, values=array.values[:, :count])
            for name, array in answers.answers.items()
        },
    )


def read_models(run: Path) -> dict[str, Any] | None:
    """What models.json of a run tells; None if there is none.

    Raises:
        InputError: it is damaged, or another run's.
    """
    path, remedy = run / FOLDER / MODELS, _anew(run / FOLDER)
    asked = read_record(path, remedy)
    if asked is not None and "run" in asked:  # of earlier versions it is not
        refuse_other(path, asked, {"run": run_dir.identity(run)}, remedy)
    return asked


def _anew(folder: Path) -> str:
    return f"delete {folder} and run {COMMAND} again"


def _damaged(path: Path, reason: str, folder: Path) -> InputError:
    return InputError(f"{path}: damaged ({reason}); {_anew(folder)}")


def _numbers_of(folder: Path, asked: Mapping[str, Any], side: str, models: int) -> tuple[int, ...]:
    """Numbers of the models on one side of models.json."""
    numbers = asked.get(side)
    if not isinstance(numbers, list) or not numbers or not all(type(n) is int for n in numbers):
        raise _damaged(folder / MODELS, f"no numbers of {side}", folder)
    beyond = next((n for n in numbers if not 0 <= n < models), None)
    if beyond is not None:
        raise _damaged(folder / MODELS, f"model {beyond}, and the run has {models}", folder)
    return tuple(numbers)


def _read(
    run: Path, name: str, sources: Sequence[int], targets: Sequence[int], examples: int
) -> Answers | None:
    """One array with its settings, models first; None where it is not whole yet."""
    folder = run / FOLDER
    path = folder / f"{name}.npy"
    record = name.removesuffix("_queries")  # spent on distances, and made with their settings
    remedy = f"run {command(run)} again"
    product = Product({record: ()}, f"{record}_parts", COMMAND)
    if not is_there(path, product.record, remedy):
        return None
    settings = recorded(folder, product)
    needs = ("examples", *SETTINGS[record])
    if settings is None or not all(need in settings for need in needs):
        reason = f"{record}.json, which tells its settings, is missing or incomplete"
        raise _damaged(path, reason, folder)
    count = settings["examples"]
    if type(count) is not int or not 0 < count <= examples:
        raise _damaged(folder / f"{record}.json", f"examples = {count!r}", folder)
    try:
        inner = _inner_shape(name, settings)
    except ValueError as error:
        raise _damaged(folder / f"{record}.json", str(error), folder) from None
    asked = [*sources] if name == "features" else [*sources, *targets]
    binding = {"run": run_dir.identity(run), "models": asked}
    about = replace(product, settings=settings, binding=binding).about(name)
    array = read_array(path, np.float32, (count, len(asked), *inner), remedy, about)
    least, most = (-np.inf, np.inf) if name == "features" else (0.0, _MOST.get(name, np.inf))
    for start in range(0, count, _CHUNK):
        part = array[start : start + _CHUNK]
        usable = np.isfinite(part) & (part >= least) & (part <= most)
        if not usable.all():
            where = np.argwhere(~usable)[0]
            raise InputError(
                f"{path}: {part[tuple(where)]} at example {start + where[0]}, place {where[1]} of "
                f"the models asked, which is no answer; delete it and {remedy}"
            )
    return Answers(np.moveaxis(array, 0, 1), settings)


def _inner_shape(name: str, settings: Mapping[str, Any]) -> Sequence[int | None]:
    """What lies behind each example and model.

    Raises:
        ValueError: settings of other types than they are written with.
    """
    for key in SETTINGS[name.removesuffix("_queries")]:
        value = settings[key]
        numbers = value if key in _LISTS else [value]
        if not isinstance(numbers, list) or any(
            type(n) not in (int, float) or not abs(n) < 2**31 for n in numbers
        ):
            raise ValueError(f"{key} = {value!r}")
    match name:
        case "rotation":
            return (1 + 2 * len(settings["rotations"]),)
        case "translation":
            return (1 + sum(4 * int(d) for d in settings["translations"]),)
        case "combined" | "combined_queries":
            return (1 + 4 * int(settings["distance"]),)
        case "noise" | "flips":
            return (len(settings[name]),)
        case "boundary":
            return (len(settings["checkpoints"]),)
        case "features":
            return (None,)
    return ()
