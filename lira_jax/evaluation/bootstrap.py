"""95 % intervals of the pooled figures, by resampling targets and examples together."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Num, UInt16
from scipy.sparse import csc_array, csr_array

from lira_jax import workers
from lira_jax.evaluation.curves import FPRS

# Targets that are resampled together: so many in a row, or the number of each target's fold.
Fold = int | Int[np.ndarray, " T"]

# Ranks of non-members at which the bootstrap's curves have thresholds; all, where there are fewer.
GRID = 1_000
REPLICATES = 500
# Points of the band around a curve, log-spaced in the false-positive rate.
BAND = 120
# Examples times folds whose weights are multiplied at once; cells in which thresholds are found.
ROWS = 2**15
CELLS = 2**14


def intervals(
    scores: Float[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    fold: Fold,
    seed: int = 0,
    replicates: int | None = None,
    nonmember: Bool[np.ndarray, "T E"] | None = None,
) -> dict[str, Any]:
    """95 % bootstrap intervals of the pooled figures, over targets and examples together.

    The pigeonhole bootstrap (Owen, Ann. Appl. Stat. 1 (2007), 386): a replicate draws folds of
    targets with replacement (the targets of a block share masks) and, apart from that, examples
    with replacement; the score of target n on example e then counts w_n·v_e times. So the interval
    is about other models trained on other examples of the same kind. Limits are percentiles of
    REPLICATES replicates. With one fold of targets, examples alone are resampled, and the interval
    is about that target only.

    Where it is not exact:

    - Spread that belongs to a model or to an example is taken as it is; noise that belongs to one
      score alone is counted up to three times, so an interval is at most √3 times too wide, never
      systematically too narrow for that reason.
    - At an FPR that rests on few false positives (see `few_false_positives`), a replicate's
      threshold jumps between the same few non-members: the interval is coarse, and its coverage is
      then below 95 %. Where no member lies above the highest non-members it is [0, 0], which says
      that nothing was seen, not that nothing is there.
    - Attack scores are fixed: neither references nor learned attacks are drawn or fitted anew.
    - A replicate's thresholds are those of GRID log-spaced ranks of the non-members.

    Args:
        scores: attack scores, one row per target.
        member: what is true.
        fold: targets per fold, targets f·fold … f·fold + fold − 1 being resampled together; or the
            number of each target's fold.
        seed: of the resampling. The same seed gives the same resamples to every attack.
        replicates: how many; None takes REPLICATES.
        nonmember: which count as non-members; None: all that are no members. Scores that are
            neither do not count.

    Returns:
        auc_ci, balanced_accuracy_ci: [low, high]; tpr_at_fpr_ci: by the keys of FPRS. over:
        what was resampled, "targets and examples" or "examples". band: arrays fpr, lo, hi, the
        interval of the TPR at each of BAND log-spaced FPR, for the log-log ROC.
    """
    resamples = Resamples(fold, scores.shape, seed, replicates)
    others = ~member if nonmember is None else nonmember
    grid = _grid(scores[others])
    false_positives, true_positives = _weighted_counts(scores, (others, member), grid, resamples)
    # A replicate of a handful of examples may hold members alone.
    usable = (false_positives[-1] > 0) & (true_positives[-1] > 0)
    fpr = (false_positives[:, usable] / false_positives[-1, usable]).T
    tpr = (true_positives[:, usable] / true_positives[-1, usable]).T
    rates = np.geomspace(1 / int(others.sum()), 1, BAND)
    limits = np.append(rates, list(FPRS.values()))
    reached = np.empty((len(fpr), limits.size))
    for replicate, (x, y) in enumerate(zip(fpr, tpr, strict=True)):
        reached[replicate] = y[np.searchsorted(x, limits, side="right") - 1]
    low, high = np.percentile(reached, [2.5, 97.5], axis=0)
    return {
        "auc_ci": percentiles(np.asarray(np.trapezoid(tpr, fpr, axis=1))),
        "balanced_accuracy_ci": percentiles((1 - (fpr + 1 - tpr) / 2).max(axis=1)),
        "tpr_at_fpr_ci": {
            key: [float(low[BAND + i]), float(high[BAND + i])] for i, key in enumerate(FPRS)
        },
        "over": "targets and examples" if len(resamples.rows) > 1 else "examples",
        "band": {"fpr": rates, "lo": low[:BAND], "hi": high[:BAND]},
    }


def fold_rows(fold: Fold, targets: int) -> list[Int[np.ndarray, " B"]]:
    """The targets of each fold, as `intervals` takes folds."""
    unit = np.arange(targets) // fold if isinstance(fold, int) else np.asarray(fold)
    return [np.flatnonzero(unit == number) for number in np.unique(unit)]


class Resamples:
    """Replicates of the bootstrap of `intervals`, the same for all that is asked of equal shapes.

    Attributes:
        rows: the targets of each fold.
        weights: how often each replicate drew each fold and each example.
    """

    def __init__(
        self, fold: Fold, shape: tuple[int, ...], seed: int = 0, replicates: int | None = None
    ) -> None:
        self.rows = fold_rows(fold, shape[0])
        with _drawing:  # one thread draws them, and the others find them kept
            self.weights = _weights(len(self.rows), shape[1], seed, replicates or REPLICATES)

    def rate_among(
        self, chosen: Bool[np.ndarray, "T E"]
    ) -> Callable[[Bool[np.ndarray, "T E"]], tuple[float, Float[np.ndarray, " R"]]]:
        """What gives the share of the chosen that is positive, as it is and in each replicate.

        NaN in a replicate that drew none of the chosen.
        """
        drawn, count = self._drawn(chosen), chosen.sum()
        drawn[drawn == 0] = np.nan

        def rate(positive: Bool[np.ndarray, "T E"]) -> tuple[float, Float[np.ndarray, " R"]]:
            hits = positive & chosen
            return float(hits.sum() / count), self._drawn(hits) / drawn

        return rate

    def _drawn(self, chosen: Bool[np.ndarray, "T E"]) -> Float[np.ndarray, " R"]:
        """How many of the chosen each replicate drew."""
        largest = max(row.size for row in self.rows)
        counts = np.empty((len(self.rows), chosen.shape[1]), np.min_scalar_type(largest))
        for place, row in enumerate(self.rows):
            np.sum(chosen[row], axis=0, dtype=counts.dtype, out=counts[place])
        # Such as one kind of non-members beside all members.
        used = np.flatnonzero(counts.any(axis=0))
        part = slice(used[0], used[-1] + 1) if used.size else slice(0)
        counts = counts[:, part]
        few = used.size and np.count_nonzero(counts) < 0.1 * counts.size
        per_fold = csr_array(counts, dtype=np.float32) if few else counts.astype(np.float32)
        of_examples = per_fold @ self.weights.examples[part]
        return (of_examples * self.weights.folds).sum(axis=0, dtype=np.float64)


@dataclass(frozen=True)
class _Weights:
    """How often each replicate drew each fold and each example: small integers, as float32.

    Attributes:
        folds: [F, R]; all one where there is one fold.
        examples: [E, R].
        narrow: the same as `examples`, to add up in half the memory.
        most: the largest of these.
    """

    folds: Float32[np.ndarray, "F R"]
    examples: Float32[np.ndarray, "E R"]
    narrow: UInt16[np.ndarray, "E R"]
    most: int


_drawing = threading.Lock()


@functools.lru_cache(maxsize=2)
def _weights(folds: int, examples: int, seed: int, replicates: int) -> _Weights:
    rng = np.random.default_rng(seed)
    of_folds = np.ones((folds, replicates), np.float32)
    if folds > 1:
        of_folds[:] = rng.multinomial(folds, np.full(folds, 1 / folds), size=replicates).T
    of_examples = np.empty((examples, replicates), np.float32)
    for replicate in range(replicates):
        drawn = rng.integers(examples, size=examples, dtype=np.int32)
        of_examples[:, replicate] = np.bincount(drawn, minlength=examples)
    # An example is drawn more than 65,535 times where there are as many, in a run of bad luck that
    # nobody will see.
    narrow = of_examples.astype(np.uint16)
    for kept in (of_folds, of_examples, narrow):
        kept.flags.writeable = False  # for the next call
    return _Weights(of_folds, of_examples, narrow, int(narrow.max(initial=0)))


def _grid(nonmember_scores: Float[np.ndarray, " M"]) -> Float[np.ndarray, " G"]:
    """Thresholds at log-spaced ranks of the non-members, and just above each, ascending."""
    ordered = np.sort(nonmember_scores)[::-1]
    ranks = np.unique(np.geomspace(1, ordered.size, GRID).round().astype(np.int64)) - 1
    if ordered.size <= GRID:
        ranks = np.arange(ordered.size)
    at = ordered[ranks]
    # At a score and just above it: there the true positives between two non-members are all in.
    return np.unique(np.concatenate([at, np.nextafter(at, np.inf)]))


def _weighted_counts(
    scores: Float[np.ndarray, "T E"],
    sides: Sequence[Bool[np.ndarray, "T E"]],
    grid: Float[np.ndarray, " G"],
    resamples: Resamples,
) -> Float[np.ndarray, "S G+2 R"]:
    """Scores of each side at or above each threshold, as often as a replicate drew them.

    Thresholds descend, from above all scores to below all. Every score is put into its bin once;
    what lies in a bin is then, per fold, a sum of rows of the examples' weights.
    """
    rows, weights = resamples.rows, resamples.weights
    bins = grid.size + 1
    shape = (len(sides) * bins, weights.folds.shape[1])
    examples = scores.shape[1]
    reached = _count_at_most(grid)
    every = len(sides) == 2 and not np.equal(*sides).any()  # each score is on one side

    def pairs(unit: int) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " P"]]:
        """How many scores of a fold count on each example, and their bins, by example."""
        own = scores[rows[unit]]
        # Bin b holds what is at or above all but b thresholds: the highest come first.
        if every:
            place = bins * (sides[1][rows[unit]].T + np.int64(1)).ravel() - 1
            place -= reached(np.ascontiguousarray(own.T).ravel())
            return np.full(examples, len(own)), place
        taken = np.stack([side[rows[unit]] for side in sides], axis=-1)  # [B, E, S]
        example, target, side = np.nonzero(np.ascontiguousarray(taken.transpose(1, 0, 2)))
        place = bins * (side + 1) - 1 - reached(own[target, example])
        return np.bincount(example, minlength=examples), place

    def of_folds(units: range) -> tuple[Int[np.ndarray, " K"], Num[np.ndarray, "K R"]]:
        """The bins that hold something, and what they hold. Whole numbers, so exact."""
        of_example, places = zip(*(pairs(unit) for unit in units), strict=True)
        place = np.concatenate(places)
        counts = np.bincount(place, minlength=shape[0])
        filled = np.flatnonzero(counts)
        number = np.empty(shape[0], np.int32)
        number[filled] = np.arange(filled.size)
        rows_of = len(units) * examples
        starts = np.append(0, np.cumsum(np.concatenate(of_example)))
        # In the order of examples, whose weights are then read once, from first to last.
        by_example = (np.ones(place.size, np.uint16), number[place], starts.astype(np.int32))
        of_fold = weights.folds[units.start : units.stop, np.newaxis]  # [G, 1, R]
        narrow = int(counts.max(initial=0)) * weights.most * int(of_fold.max()) < 2**16
        drawn = weights.narrow if narrow else weights.examples
        of_fold = of_fold.astype(drawn.dtype)
        if len(units) > 1:
            drawn = (of_fold * drawn).reshape(rows_of, -1)
        product = csc_array(by_example, shape=(filled.size, rows_of), dtype=drawn.dtype) @ drawn
        if len(units) == 1:
            product *= of_fold[0]
        return filled, product

    # Few examples: several folds in one product, as adding it to the total is then the long work.
    together = max(1, ROWS // examples)
    groups = [range(n, min(n + together, len(rows))) for n in range(0, len(rows), together)]
    # Half the memory to add in, unless a sum of so many scores might not fit.
    total = np.zeros(shape, np.uint32 if scores.size < 2**28 else np.float64)
    for filled, product in workers.in_order(of_folds, groups):
        if product.dtype != np.uint16:
            product = product.astype(total.dtype)
        if filled.size == len(total):
            total += product
        else:
            total[filled] += product
    counts = np.zeros((len(sides), bins + 1, shape[1]))
    np.cumsum(total.reshape(len(sides), bins, -1), axis=1, out=counts[:, 1:])
    return counts


def _count_at_most(
    grid: Float[np.ndarray, " G"],
) -> Callable[[Float[np.ndarray, " P"]], Int[np.ndarray, " P"]]:
    """What gives, for each of many values, how many of the ascending thresholds it reaches.

    Nearly all values lie in one of CELLS equal cells without a threshold, which tells the answer;
    the others are searched.
    """
    low, high = grid[[grid.size // 100, -1 - grid.size // 100]]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scale = CELLS / (high - low)

    if not (np.isfinite([low, high, scale]).all() and high > low):
        return lambda values: np.searchsorted(grid, values, side="right")

    def cell(values: Float[np.ndarray, " P"]) -> Int[np.ndarray, " P"]:
        place = (values - low) * scale  # rises with the value, however it is rounded
        return np.clip(place, 0, CELLS - 1, out=place).astype(np.intp)

    last = np.cumsum(np.bincount(cell(grid), minlength=CELLS))
    empty = np.diff(last, prepend=0) == 0

    def count(values: Float[np.ndarray, " P"]) -> Int[np.ndarray, " P"]:
        place = cell(values)
        result = last[place]
        unsure = np.flatnonzero(~empty[place])
        result[unsure] = np.searchsorted(grid, values[unsure], side="right")
        return result

    return count


def percentiles(replicates: Float[np.ndarray, " R"]) -> list[float]:
    """The 95 % interval of a figure, from what it is in each replicate; NaN does not count."""
    low, high = np.percentile(replicates[np.isfinite(replicates)], [2.5, 97.5])
    return [float(low), float(high)]
