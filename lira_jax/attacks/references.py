"""Who are the references of a target, and the statistics of their scores.

Every model is a target once. Its references are chosen by one of two rules, and by either, the
number of references on each side (IN: trained on the example; OUT: did not) is the same whether
or not the target trained on the example (docs/methods.md, 3.10):

- **leave-block-out**, where models come in blocks in which every example is IN equally often: the
  references are all models outside the target's block.
- **leave-one-out**, for masks made any other way: each side of each example keeps a *base* of the
  first r + 1 models on that side, in a random order of its own, drawn from a hash of the scores
  (`draws.py`). With one order for all examples, which models are the references would tell the
  answer where models differ in general.
  The references are the base less the target, or less its last model where the target is not in it:
  always r.

  An example with one model on a side, or none, leaves its targets no reference there. Most attacks
  cannot do without, and leave a run with such an example alone (`References.lacking`).

The common form: per side, a base of R models per example, and per *fold* of targets that are left
out together (a block, or one target) D of them dropped. So statistics over references are those of
the base less the dropped part, and nothing is fitted again per target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from lira_jax import workers
from lira_jax.attacks.draws import noise
from lira_jax.errors import InputError
from lira_jax.score_set import ScoreSet

# float64 scores of one chunk of examples, all models: small enough to stay near the CPU's caches.
CHUNK_BYTES = 2**20
# glibc hands the memory of every chunk back to the system, to take it again page by page for the
# next, until it has seen a block freed that is large against what a chunk takes (at most 32 MiB).
FREED_ONCE = 24 * 2**20
# Sums less the dropped part are fitted anew where they are less than this share of the whole: an
# outlier was dropped, and little more than its rounding errors is left.
CANCELLED = 1e-6

# The least σ, as a share of the spread of all scores of its side and view.
MIN_RELATIVE_STD = 0.01
# The least σ, in units of φ: about its float32 resolution. Only for scores that are all equal.
MIN_STD = 1e-6

Side = Literal["in", "out"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class References:
    """The rule by which targets get their references.

    Attributes:
        fold: targets per fold; fold f leaves out the models f·fold … f·fold + fold − 1.
        base_in, base_out: models in each example's base, R.
        dropped_in, dropped_out: models of the base that a fold drops, D.
        order: leave-one-out only: models in the order in which each example's bases are filled,
            int [N, E].
        words: the rule, for people.
        lacking: sides on which some example leaves its targets no reference, and which, for people;
            there `count_in` or `count_out` is 0.
    """

    fold: int
    base_in: int
    base_out: int
    dropped_in: int
    dropped_out: int
    order: Int[np.ndarray, "N E"] | None
    words: str
    lacking: Mapping[Side, str] = field(default_factory=dict)

    @property
    def count_in(self) -> int:
        """IN references of every target and example."""
        return self.base_in - self.dropped_in

    @property
    def count_out(self) -> int:
        """OUT references of every target and example."""
        return self.base_out - self.dropped_out


def find(score_set: ScoreSet, few: bool = False) -> References:
    """Choose the rule: blocks as given or as recognised, else leave-one-out.

    Args:
        score_set: its masks, and its block where it is known.
        few: also give a rule where examples leave targets without references (`lacking`).

    Raises:
        InputError: a given block that the masks do not bear out; fewer than two blocks; unless
            `few`, an example left without a reference on one side.
    """
    keep, block = score_set.keep, score_set.block
    if block is not None:
        _check_block(keep, block, score_set.source)
    else:
        block = recognise_block(keep)
    models = keep.shape[0]
    if block is not None:
        base_in = int(keep[:, 0].sum())
        per_block = int(keep[:block, 0].sum())
        return References(
            fold=block,
            base_in=base_in,
            base_out=models - base_in,
            dropped_in=per_block,
            dropped_out=block - per_block,
            order=None,
            words=f"leave-block-out, blocks of {block}",
        )
    counts_in = keep.sum(axis=0)
    base_in, base_out = int(counts_in.min()), int((models - counts_in).min())
    lacking = _lacking(counts_in, models)
    if lacking and not few:
        raise InputError(f"{score_set.source}: in `keep` {next(iter(lacking.values()))}")
    rule = References(
        fold=1,
        base_in=base_in,
        base_out=base_out,
        dropped_in=min(base_in, 1),
        dropped_out=min(base_out, 1),
        order=np.argsort(noise(score_set), axis=0, kind="stable").astype(np.int32),
        words="",
        lacking=lacking,
    )
    words = f"leave-one-out with {rule.count_in} IN and {rule.count_out} OUT references, "
    words += "because the masks form no blocks"
    if lacking:
        words += "; if they are drawn independently, lira-bayes takes all that each example has"
    return replace(rule, words=words)


def _lacking(counts_in: Int[np.ndarray, " E"], models: int) -> dict[Side, str]:
    """The sides on which some example has fewer than 2 models, in words."""
    lacking: dict[Side, str] = {}
    sides: tuple[tuple[Side, str, Int[np.ndarray, " E"]], ...] = (
        ("in", "trained", counts_in),
        ("out", "did not train", models - counts_in),
    )
    for side, did, counts in sides:
        few = int((counts < 2).sum())
        if few:
            lacking[side] = (
                f"only {counts.min()} of {models} models {did} on example {counts.argmin()}, and "
                "leave-one-out needs 2 on each side; add models or remove the "
                f"{few} such example{'s' * (few > 1)}"
            )
    return lacking


def recognise_block(keep: Bool[np.ndarray, "N E"]) -> int | None:
    """The smallest block that the masks are made of, at least twice; None if there is none."""
    models = keep.shape[0]
    sizes = range(2, models // 2 + 1)
    return next((size for size in sizes if models % size == 0 and _balanced(keep, size)), None)


def _balanced(keep: Bool[np.ndarray, "N E"], block: int) -> bool:
    """Is every example IN equally often in every block, neither never nor always?"""
    per_block = int(keep[:block, 0].sum())
    return 0 < per_block < block and all(
        bool((keep[start : start + block].sum(axis=0) == per_block).all())
        for start in range(0, keep.shape[0], block)
    )


def _check_block(keep: Bool[np.ndarray, "N E"], block: int, source: str) -> None:
    models = keep.shape[0]
    if block < 2 or models % block:
        raise InputError(
            f"{source}: {models} models do not form blocks of {block}; "
            "give a block of at least 2 that divides the number of models"
        )
    if models < 2 * block:
        raise InputError(
            f"{source}: {models} models are fewer than two blocks of {block}, "
            f"so no target has references; train at least {2 * block} models"
        )
    if not _balanced(keep, block):
        per_block = keep.reshape(-1, block, keep.shape[1]).sum(axis=1)
        usual = min(max(int(per_block[0, 0]), 1), block - 1)
        group, example = np.argwhere(per_block != usual)[0]
        raise InputError(
            f"{source}: in `keep` example {example} is a member of {per_block[group, example]} "
            f"models of block {group} (models {group * block} … {group * block + block - 1}), "
            f"not of {usual}; mend the masks, or leave `block` out"
        )


def base_and_dropped(
    references: References,
    keep: Bool[np.ndarray, "N E"],
    chunk: slice,
    side: Side,
) -> tuple[Int[np.ndarray, "R C"], Int[np.ndarray, "F D C"]]:
    """The base of one side, as models, and what every fold drops, as positions in the base.

    Args:
        references: the rule.
        keep: all masks.
        chunk: the C examples that are asked for.
        side: IN or OUT.
    """
    keep = keep[:, chunk]
    models, examples = keep.shape
    outside = ~keep if side == "in" else keep
    size, dropped = references.base_in, references.dropped_in
    if side == "out":
        size, dropped = references.base_out, references.dropped_out
    if references.order is None:
        base = np.argsort(outside, axis=0, kind="stable")[:size]
        # The base is in the order of models and has D from each block: block f's are the f-th D.
        positions = np.arange(size).reshape(-1, dropped, 1)
        return base, np.broadcast_to(positions, (*positions.shape[:2], examples))
    order = references.order[:, chunk]
    ranked = np.argsort(np.take_along_axis(outside, order, axis=0), axis=0, kind="stable")[:size]
    base = np.take_along_axis(order, ranked, axis=0)
    positions = np.full((models, examples), size - 1)
    np.put_along_axis(positions, base, np.arange(size)[:, np.newaxis], axis=0)
    return base, positions[:, np.newaxis][:, :dropped]


@dataclass(frozen=True)
class Moments:
    """Statistics of the references' scores on one side, per fold, example and view, float64.

    Attributes:
        count: references, the same everywhere.
        mean: their mean, [F, C, Q].
        centre: the same mean, or their median, [F, C, Q].
        squares: sum of their squared deviations from the mean, [F, C, Q].
    """

    count: int
    mean: Float[np.ndarray, "F C Q"]
    centre: Float[np.ndarray, "F C Q"]
    squares: Float[np.ndarray, "F C Q"]


def moments(
    values: Float[np.ndarray, "N C Q"],
    base: Int[np.ndarray, "R C"],
    dropped: Int[np.ndarray, "F D C"],
    centre: Literal["mean", "median"] = "mean",
) -> Moments:
    """Statistics over the base less the dropped, for every fold at once.

    Args:
        values: float64 scores of a chunk of C examples under all models.
        base, dropped: from `base_and_dropped`.
        centre: what `Moments.centre` is to hold.
    """
    columns = np.arange(values.shape[1])
    scores = values[base, columns]  # [R, C, Q]
    middle = _medians(scores, dropped) if centre == "median" else None
    # Centred twice: the subtraction of sums below then cancels little, and scores that are all
    # equal come out with a spread of exactly zero.
    shift = scores[0].copy()
    scores -= shift
    residual_mean = scores.mean(axis=0)
    scores -= residual_mean
    shift += residual_mean

    left_out = scores[dropped, columns]  # [F, D, C, Q]
    count = base.shape[0] - dropped.shape[1]
    mean = (scores.sum(axis=0) - left_out.sum(axis=1)) / count
    all_squares = (scores * scores).sum(axis=0)
    squares = all_squares - (left_out * left_out).sum(axis=1) - count * mean * mean
    mean += shift
    cancelled = squares < CANCELLED * all_squares
    if cancelled.any():
        mean[cancelled], squares[cancelled] = _refit(values, base, dropped, cancelled)
    np.maximum(squares, 0.0, out=squares)
    return Moments(count, mean, mean if middle is None else middle, squares)


def _refit(
    values: Float[np.ndarray, "N C Q"],
    base: Int[np.ndarray, "R C"],
    dropped: Int[np.ndarray, "F D C"],
    chosen: Bool[np.ndarray, "F C Q"],
) -> tuple[Float[np.ndarray, " L"], Float[np.ndarray, " L"]]:
    """Mean, and sum of squared deviations from it, of the L chosen, from their references alone."""
    fold, example, view = np.nonzero(chosen)
    scores = values[base[:, example], example, view]  # [R, L]
    kept = np.ones(scores.shape, dtype=bool)
    np.put_along_axis(kept, dropped[fold, :, example].T, False, axis=0)
    mean = scores.mean(axis=0, where=kept)
    return mean, np.square(scores - mean).sum(axis=0, where=kept)


def _medians(
    scores: Float[np.ndarray, "R C Q"], dropped: Int[np.ndarray, "F D C"]
) -> Float[np.ndarray, "F C Q"]:
    """Medians of the base less the dropped, by one sort of the base."""
    size = scores.shape[0]
    order = np.argsort(scores, axis=0)
    ordered = np.take_along_axis(scores, order, axis=0)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(size)[:, np.newaxis, np.newaxis], axis=0)
    gaps = np.sort(ranks[dropped, np.arange(scores.shape[1])], axis=1)  # [F, D, C, Q]
    left = size - gaps.shape[1]

    def element(rank: int) -> Float[np.ndarray, "F C Q"]:
        place = np.full((gaps.shape[0], *gaps.shape[2:]), rank)
        for gap in np.moveaxis(gaps, 1, 0):  # ascending: each gap at or below moves it up by one
            place += gap <= place
        return np.take_along_axis(ordered, place, axis=0)

    return (element((left - 1) // 2) + element(left // 2)) / 2


def with_floor(
    std: Float[np.ndarray, "*S"], spread: Float[np.ndarray, "..."] | float
) -> Float[np.ndarray, "*S"]:
    """σ, or if that is more, MIN_RELATIVE_STD of the spread of all scores, or MIN_STD."""
    return np.maximum(std, np.maximum(MIN_RELATIVE_STD * spread, MIN_STD))


def out_statistics(
    score_set: ScoreSet, references: References, queries: int, description: str, progress: bool
) -> tuple[Float[np.ndarray, "N E"], Float[np.ndarray, "F E"], Float[np.ndarray, "F E"]]:
    """Mean φ over the first `queries` views, and of every example's OUT references the mean of it
    and the sum of squared deviations."""
    models, examples = score_set.keep.shape
    phi = np.empty((models, examples))
    mean, squares = np.empty((2, models // references.fold, examples))

    def describe(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> None:
        phi[:, chunk] = scores.mean(axis=-1)
        base, dropped = base_and_dropped(references, score_set.keep, chunk, "out")
        out = moments(phi[:, chunk, np.newaxis], base, dropped)
        mean[:, chunk], squares[:, chunk] = out.mean[..., 0], out.squares[..., 0]

    for _ in map_chunks(describe, score_set.scores, queries, description, progress):
        pass
    return phi, mean, squares


def map_chunks(
    function: Callable[[slice, Float[np.ndarray, "N C Q"]], Result],
    scores: Float[np.ndarray, "N E Q"],
    queries: int,
    description: str = "",
    progress: bool = False,
) -> Iterator[Result]:
    """Apply a function to the scores chunk by chunk of examples; results come in order.

    Chunks run on a thread per core (NumPy lets go of the interpreter while it computes), and the
    scores, which may be a memory map, are never held whole.

    Args:
        function: takes the examples' slice and their float64 scores under all models.
        scores: φ.
        queries: views to use, the first so many.
        description, progress: of the progress bar, shown if standard error is a terminal.
    """
    models, examples, _ = scores.shape
    size = max(1, CHUNK_BYTES // (8 * models * queries))
    slices = [slice(start, min(start + size, examples)) for start in range(0, examples, size)]
    np.empty(FREED_ONCE, np.uint8)

    def work(chunk: slice) -> Result:
        return function(chunk, np.asarray(scores[:, chunk, :queries], dtype=np.float64))

    yield from workers.bar(workers.in_order(work, slices), len(slices), description, progress)
