"""How well attack scores tell members from non-members: ROC, TPR at low FPR, intervals.

NumPy and SciPy only. The primary curve pools the scores of all targets under one threshold.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Integer, UInt16
from scipy.sparse import csc_array, csr_array
from scipy.stats import t as student

from lira_jax import workers

# The false-positive rates at which the true-positive rate is reported, by their key in JSON.
FPRS = {"1e-05": 1e-5, "0.0001": 1e-4, "0.001": 1e-3, "0.01": 1e-2}
# Fewer expected false positives than this behind a TPR, and every output marks it.
FEW_FALSE_POSITIVES = 10
# Shares of members, before the attack, at which its precision is stated; by their key in JSON.
PRIORS = {"0.5": 0.5, "0.1": 0.1, "0.01": 0.01}

# Targets that are resampled together: so many in a row, or the number of each target's fold.
Fold = int | Int[np.ndarray, " T"]

# What `figures` tells.
FIGURES = ("auc", "balanced_accuracy", "tpr_at_fpr", "auc_ci", "balanced_accuracy_ci",
           "tpr_at_fpr_ci", "over", "few_false_positives")  # fmt: skip
# Attacks that are judged at once, where there are as many cores. Each takes some four times the
# memory of its scores, these included.
AT_ONCE = 8

# Ranks of non-members at which the bootstrap's curves have thresholds; all, where there are fewer.
GRID = 1_000
REPLICATES = 500
# Points of the band around a curve, log-spaced in the false-positive rate.
BAND = 120
# Only this share of the highest non-members is sorted to choose thresholds from.
TOP = 0.02
# Scores, or points of a curve, that are worked on at a time, so that they stay in the CPU's caches.
BLOCK = 2**16


@dataclass(frozen=True)
class Roc:
    """A ROC curve, one point per distinct score, from (0, 0) up to all.

    Attributes:
        false_positives: non-members at or above the point's threshold, ascending, int [P].
        true_positives: members at or above it, ascending, int [P].
    """

    false_positives: Int[np.ndarray, " P"]
    true_positives: Int[np.ndarray, " P"]

    @property
    def fpr(self) -> Float[np.ndarray, " P"]:
        """False-positive rates."""
        return self.false_positives / self.false_positives[-1]

    @property
    def tpr(self) -> Float[np.ndarray, " P"]:
        """True-positive rates."""
        return self.true_positives / self.true_positives[-1]


def roc(scores: Float[np.ndarray, "*S"], member: Bool[np.ndarray, "*S"]) -> Roc:
    """The ROC curve of scores of any shape; equal scores are one point.

    Raises:
        ValueError: a NaN score, different shapes, or members or non-members missing.
    """
    if scores.shape != member.shape:
        raise ValueError(f"scores have shape {scores.shape}, membership {member.shape}")
    if np.isnan(scores).any():
        raise ValueError("an attack score is NaN")
    if member.all() or not member.any():
        raise ValueError("a ROC curve needs members and non-members")
    # Members and non-members are sorted apart, which is the long work, and merged block by block.
    members, nonmembers = scores[member], scores[~member]
    members.sort()
    nonmembers.sort()
    # No block parts equal scores: it begins where its least one begins.
    least = np.unique(np.concatenate([members[::BLOCK], nonmembers[::BLOCK]]))
    starts = [np.searchsorted(side, least[::-1]).tolist() for side in (members, nonmembers)]
    stops = [
        [side.size, *start[:-1]] for side, start in zip((members, nonmembers), starts, strict=True)
    ]
    kind = np.int32 if scores.size < 2**31 else np.int64

    def merged(at: tuple[int, int, int, int]) -> Integer[np.ndarray, "2 B"]:
        """The points of the members a … b − 1 and the non-members c … d − 1."""
        a, b, c, d = at
        both = np.concatenate([members[a:b], nonmembers[c:d]])
        order = np.argsort(both, kind="stable")[::-1]
        ordered = both[order]
        last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), both.size - 1)
        positives = np.cumsum(order < b - a)[last]
        above = (nonmembers.size - d, members.size - b)
        return np.stack([above[0] + last + 1 - positives, above[1] + positives]).astype(kind)

    blocks = zip(starts[0], stops[0], starts[1], stops[1], strict=True)
    points = np.concatenate(
        [np.zeros((2, 1), kind), *workers.in_order(merged, blocks)], axis=1, dtype=kind
    )
    return Roc(false_positives=points[0], true_positives=points[1])


def auc(curve: Roc) -> float:
    """Area under the curve, by trapezoids, so a tie counts half."""
    areas = np.empty(curve.false_positives.size - 1)
    for start in range(0, areas.size, BLOCK):
        fpr, tpr = _rates(curve, slice(start, start + BLOCK + 1))
        areas[start : start + BLOCK] = np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2
    return float(areas.sum())


def balanced_accuracy(curve: Roc) -> float:
    """The largest 1 − (FPR + 1 − TPR)/2 over thresholds."""
    highest = []
    for start in range(0, curve.false_positives.size, BLOCK):
        fpr, tpr = _rates(curve, slice(start, start + BLOCK))
        highest.append((1 - (fpr + 1 - tpr) / 2).max())
    return float(max(highest))


def _rates(curve: Roc, part: slice) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """FPR and TPR of a part of the curve."""
    return (
        curve.false_positives[part] / curve.false_positives[-1],
        curve.true_positives[part] / curve.true_positives[-1],
    )


def tpr_at_fpr(curve: Roc, fpr: float) -> float:
    """The largest TPR over thresholds whose FPR is at most `fpr`; no interpolation."""
    nonmembers = int(curve.false_positives[-1])
    most = min(int(fpr * nonmembers) + 1, nonmembers)
    while most / nonmembers > fpr:  # 0.01 · 100 is 1.0, but products of others may be rounded
        most -= 1
    point = np.searchsorted(curve.false_positives, most, side="right") - 1
    return float(curve.true_positives[point] / curve.true_positives[-1])


def summary(curve: Roc) -> dict[str, Any]:
    """The figures of one curve: auc, balanced_accuracy, tpr_at_fpr."""
    return {
        "auc": auc(curve),
        "balanced_accuracy": balanced_accuracy(curve),
        "tpr_at_fpr": {key: tpr_at_fpr(curve, fpr) for key, fpr in FPRS.items()},
    }


def mean_over_targets(
    scores: Float[np.ndarray, "T E"], member: Bool[np.ndarray, "T E"]
) -> dict[str, Any] | None:
    """The figures of each target's own curve, averaged over targets; keys as in `summary`.

    Targets with members only, or non-members only, have no curve; None if no target has one.
    """
    usable = member.any(axis=1) & ~member.all(axis=1)
    targets = zip(scores[usable], member[usable], strict=True)
    each = list(workers.in_order(lambda one: summary(roc(*one)), targets))
    if not each:
        return None
    return {
        "auc": float(np.mean([one["auc"] for one in each])),
        "balanced_accuracy": float(np.mean([one["balanced_accuracy"] for one in each])),
        "tpr_at_fpr": {
            key: float(np.mean([one["tpr_at_fpr"][key] for one in each])) for key in FPRS
        },
    }


def expected_false_positives(nonmembers: int) -> dict[str, float]:
    """False positives that each rate of FPRS stands for, by its key."""
    return {key: fpr * nonmembers for key, fpr in FPRS.items()}


def few_false_positives(nonmembers: int) -> dict[str, bool]:
    """Does a TPR at that FPR rest on fewer than FEW_FALSE_POSITIVES expected false positives?"""
    expected = expected_false_positives(nonmembers)
    return {key: count < FEW_FALSE_POSITIVES for key, count in expected.items()}


def best_threshold(scores: Float[np.ndarray, "*S"], member: Bool[np.ndarray, "*S"]) -> float:
    """The threshold of the largest balanced accuracy: member iff the score is at least that.

    The highest of such thresholds; infinite if no threshold beats calling nothing a member.
    """
    curve = roc(scores, member)
    point = int(np.argmax(curve.tpr - curve.fpr))
    positives = int(curve.false_positives[point] + curve.true_positives[point])
    if not positives:
        return float("inf")
    place = scores.size - positives
    return float(np.partition(scores, place, axis=None)[place])


def figures(
    scores: Float[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    fold: Fold,
    seed: int = 0,
    replicates: int | None = None,
) -> dict[str, Any]:
    """FIGURES: `summary` of the pooled curve, its intervals, few_false_positives."""
    found = summary(roc(scores, member)) | intervals(scores, member, fold, seed, replicates)
    del found["band"]
    nonmembers = member.size - int(member.sum())
    return found | {"few_false_positives": few_false_positives(nonmembers)}


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
    rows = fold_rows(fold, scores.shape[0])
    folds = len(rows)
    weights = _resamples(folds, scores.shape[1], seed, replicates or REPLICATES)
    others = ~member if nonmember is None else nonmember
    grid = _thresholds(scores[others])
    false_positives, true_positives = _weighted_counts(
        scores, (others, member), grid, rows, weights
    )
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
        "auc_ci": _percentiles(np.asarray(np.trapezoid(tpr, fpr, axis=1))),
        "balanced_accuracy_ci": _percentiles((1 - (fpr + 1 - tpr) / 2).max(axis=1)),
        "tpr_at_fpr_ci": {
            key: [float(low[BAND + i]), float(high[BAND + i])] for i, key in enumerate(FPRS)
        },
        "over": _over(folds),
        "band": {"fpr": rates, "lo": low[:BAND], "hi": high[:BAND]},
    }


def _over(folds: int) -> str:
    return "targets and examples" if folds > 1 else "examples"


def fold_rows(fold: Fold, targets: int) -> list[Int[np.ndarray, " B"]]:
    """The targets of each fold, as `intervals` takes folds."""
    unit = np.arange(targets) // fold if isinstance(fold, int) else np.asarray(fold)
    return [np.flatnonzero(unit == one) for one in np.unique(unit)]


def mean_and_interval(
    values: Float[np.ndarray, " T"], fold: Fold
) -> tuple[float, list[float] | None]:
    """The mean over targets of a figure of each, and its 95 % interval by Student's t over folds.

    About other targets on the same examples; None with one fold.
    """
    rows = fold_rows(fold, len(values))
    mean = float(values.mean())
    if len(rows) < 2:
        return mean, None
    # How the sums over folds scatter about what their sizes let expect.
    excess = np.array([(values[row] - mean).sum() for row in rows])
    error = np.sqrt(len(rows) / (len(rows) - 1) * (excess**2).sum()) / values.size
    half = float(student.ppf(0.975, len(rows) - 1)) * error
    return mean, [mean - half, mean + half]


def shadow_thresholds(
    scores: Float[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    fold: Fold,
    seed: int = 0,
) -> dict[str, Any] | None:
    """What an attacker reaches who must choose the threshold before seeing the target.

    A threshold read off the target's own ROC curve flatters the attack (METHODS.md, 3.14). Here
    the threshold for a fold of targets is chosen on the non-members of all other folds, the shadow
    models alone: an example is called a member if its conformal p-value, (1 + non-members of the
    others that score at least as high) / (1 + their number), is at most the FPR. Were the scores of
    all targets of one law and independent, the FPR reached would be at most the one asked for, on
    average over runs. Models that are more confident in general than others reach more: that is
    what `fpr` shows. With fewer than 1/FPR non-members nothing is called a member. (The target is
    one among the references by which the other folds' scores were computed, as any model is; it is
    not among the scores the threshold is chosen on.)

    Args:
        scores: attack scores, one row per target.
        member: what is true.
        fold: as in `intervals`.
        seed: of the resampling.

    Returns:
        By the keys of FPRS: threshold, the mean over folds of the least score called a member
        (None where nothing is in some fold); fpr, tpr, what the decisions reach over all targets;
        fpr_ci, tpr_ci, 95 % intervals by the bootstrap of `intervals`, of what these very
        thresholds reach: that others might have been chosen is not in them; precision, by the keys
        of PRIORS: the share of members among positives if that
        share of the candidates are members, TPR·π / (TPR·π + FPR·(1 − π)), or None where nothing
        was called a member. None with one fold of targets, as there are no others.
    """
    rows = fold_rows(fold, scores.shape[0])
    folds = len(rows)
    if folds < 2:
        return None
    weights = _resamples(folds, scores.shape[1], seed, REPLICATES)
    drawn = {side: _drawn(chosen, rows, weights) for side, chosen in _sides(member)}
    unit = np.empty(scores.shape[0], np.int64)
    for place, row in enumerate(rows):
        unit[row] = place
    result = {}
    for key, least in _shadow_choices(scores, ~member, unit, folds).items():
        positive = scores >= least[unit][:, np.newaxis]
        found: dict[str, Any] = {
            "threshold": float(least.mean()) if np.isfinite(least).all() else None
        }
        for side, chosen in _sides(member):
            hits = positive & chosen
            found[side] = int(hits.sum()) / int(chosen.sum())
            total = drawn[side]
            usable = total > 0
            found[f"{side}_ci"] = _percentiles(_drawn(hits, rows, weights)[usable] / total[usable])
        found["precision"] = {
            name: precision(found["tpr"], found["fpr"], prior) for name, prior in PRIORS.items()
        }
        result[key] = found
    return result


def precision(tpr: float, fpr: float, prior: float) -> float | None:
    """Share of members among positives, if `prior` is their share of the candidates."""
    positives = tpr * prior + fpr * (1 - prior)
    return tpr * prior / positives if positives else None


def decisions(
    positive: Bool[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    fold: Fold,
    seed: int = 0,
) -> dict[str, Any]:
    """What given decisions reach, with 95 % intervals by the bootstrap of `intervals`.

    The intervals are of these very decisions: that other thresholds might have been tuned is not in
    them.

    Args:
        positive: what is called a member.
        member: what is true; some are, and some are not.
        fold: as in `intervals`.
        seed: of the resampling.

    Returns:
        tpr, fpr; balanced_accuracy, (TPR + 1 − FPR)/2; precision, the share of members among
        positives if half of the candidates are members, None where nothing is called a member; and
        of each its interval, such as tpr_ci.
    """
    return decisions_against(positive, member, {"": ~member}, fold, seed)[""]


def decisions_against(
    positive: Bool[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    nonmembers: Mapping[str, Bool[np.ndarray, "T E"]],
    fold: Fold,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """`decisions` on the same members and several kinds of non-members, by the same resamples.

    Args:
        nonmembers: of each kind; what is neither a member nor of a kind does not count for it.
    """
    rows = fold_rows(fold, len(positive))
    weights = _resamples(len(rows), positive.shape[1], seed, REPLICATES)
    of_members = _rate(positive, member, rows, weights)
    result = {}
    for kind, chosen in nonmembers.items():
        of_kind = _rate(positive, chosen, rows, weights)
        found: dict[str, Any] = {}
        for name, figure in _OF_DECISIONS.items():
            value = float(figure(of_kind[0], of_members[0])[0])
            replicates = figure(of_kind[1], of_members[1])
            known = replicates[np.isfinite(replicates)]
            found[name] = value if np.isfinite(value) else None
            found[f"{name}_ci"] = _percentiles(known) if np.isfinite(value) else None
        result[kind] = found
    return result


def difference(
    first: Bool[np.ndarray, "T E"],
    second: Bool[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    fold: Fold,
    seed: int = 0,
) -> tuple[float, list[float]]:
    """By how much the first decisions' balanced accuracy exceeds the second's, and the interval.

    Both are drawn together in every replicate, so that what hard targets and examples do to both
    cancels out.

    Args:
        first, second: what is called a member, by two attacks on the same, or by one attack on two
            runs whose models trained on the same examples.
        member, fold, seed: as in `decisions`.
    """
    rows = fold_rows(fold, len(first))
    weights = _resamples(len(rows), first.shape[1], seed, REPLICATES)
    accuracies = []
    for one in (first, second):
        both = (_rate(one, chosen, rows, weights) for chosen in (~member, member))
        exact, drawn = zip(*both, strict=True)
        accuracy = _OF_DECISIONS["balanced_accuracy"]
        accuracies.append((accuracy(*exact), accuracy(*drawn)))
    (value, replicates), (less, less_drawn) = accuracies
    value, replicates = float((value - less)[0]), replicates - less_drawn
    return value, _percentiles(replicates[np.isfinite(replicates)])


def _rate(
    positive: Bool[np.ndarray, "T E"],
    chosen: Bool[np.ndarray, "T E"],
    rows: Sequence[Int[np.ndarray, " B"]],
    weights: _Resamples,
) -> tuple[Float[np.ndarray, " 1"], Float[np.ndarray, " R"]]:
    """The share of what is chosen that is positive, as it is and in each replicate."""
    hits, total = positive & chosen, _drawn(chosen, rows, weights)
    # A replicate of a handful of examples may hold members alone.
    drawn = _drawn(hits, rows, weights) / np.where(total > 0, total, np.nan)
    return np.array([hits.sum() / chosen.sum()]), drawn


def _precision_of(
    fpr: Float[np.ndarray, " R"], tpr: Float[np.ndarray, " R"]
) -> Float[np.ndarray, " R"]:
    positives = tpr + fpr
    return tpr / np.where(positives > 0, positives, np.nan)


_OF_DECISIONS = {
    "tpr": lambda fpr, tpr: tpr,
    "fpr": lambda fpr, tpr: fpr,
    "balanced_accuracy": lambda fpr, tpr: (tpr + 1 - fpr) / 2,
    "precision": _precision_of,
}


def _sides(member: Bool[np.ndarray, "T E"]) -> list[tuple[str, Bool[np.ndarray, "T E"]]]:
    return [("fpr", ~member), ("tpr", member)]


def _shadow_choices(
    scores: Float[np.ndarray, "T E"],
    nonmember: Bool[np.ndarray, "T E"],
    fold_of: Int[np.ndarray, " T"],
    folds: int,
) -> dict[str, Float[np.ndarray, " F"]]:
    """By FPR, the least score that is called a member in each fold; infinite if none is."""
    unit = np.repeat(fold_of.astype(np.int32), nonmember.sum(axis=1))
    pool = scores[nonmember]
    count = np.bincount(unit, minlength=folds)
    # The highest of all non-members nearly always hold what is asked of the other folds.
    kept = min(pool.size, int(TOP * pool.size) + 1)
    top = np.argpartition(pool, pool.size - kept)[pool.size - kept :]
    top = top[np.argsort(pool[top])[::-1]]
    result = {key: np.full(folds, np.inf) for key in FPRS}
    for left_out in range(folds):
        others = pool[top[unit[top] != left_out]]
        size = pool.size - int(count[left_out])
        for key, fpr in FPRS.items():
            # As in Fraction(fpr): 0.01 · 100 is 1.0, but 0.001 · 3000 … may fall short by rounding.
            rank = int(fpr * (size + 1) * (1 + 1e-12))
            if rank > others.size:
                others = np.sort(pool[unit != left_out])[::-1]
            if rank:
                result[key][left_out] = np.nextafter(others[rank - 1], np.inf)
    return result


def _drawn(
    chosen: Bool[np.ndarray, "T E"], rows: Sequence[Int[np.ndarray, " B"]], weights: _Resamples
) -> Float[np.ndarray, " R"]:
    """How many of the chosen each replicate drew."""
    largest = max(row.size for row in rows)
    counts = np.empty((len(rows), chosen.shape[1]), np.min_scalar_type(largest))
    for place, row in enumerate(rows):
        np.sum(chosen[row], axis=0, dtype=counts.dtype, out=counts[place])
    # Such as one kind of non-members beside all members.
    used = np.flatnonzero(counts.any(axis=0))
    part = slice(used[0], used[-1] + 1) if used.size else slice(0)
    counts = counts[:, part]
    few = used.size and np.count_nonzero(counts) < 0.1 * counts.size
    per_fold = csr_array(counts, dtype=np.float32) if few else counts.astype(np.float32)
    of_examples = per_fold @ weights.examples[part]
    return (of_examples * weights.folds).sum(axis=0, dtype=np.float64)


@dataclass(frozen=True)
class _Resamples:
    """How often each replicate drew each fold and each example: small integers, as float32.

    Attributes:
        folds: [F, R]; all one where there is one fold.
        examples: [E, R].
        narrow: the same as `examples`, to add up in half the memory.
    """

    folds: Float32[np.ndarray, "F R"]
    examples: Float32[np.ndarray, "E R"]
    narrow: UInt16[np.ndarray, "E R"]


def _resamples(folds: int, examples: int, seed: int, replicates: int) -> _Resamples:
    with _drawing:  # one thread draws them, and the others find them kept
        return _kept_resamples(folds, examples, seed, replicates)


_drawing = threading.Lock()


@functools.lru_cache(maxsize=2)
def _kept_resamples(folds: int, examples: int, seed: int, replicates: int) -> _Resamples:
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
    return _Resamples(of_folds, of_examples, narrow)


def _thresholds(nonmember_scores: Float[np.ndarray, " M"]) -> Float[np.ndarray, " G"]:
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
    rows: Sequence[Int[np.ndarray, " B"]],
    weights: _Resamples,
) -> Float[np.ndarray, "S G+2 R"]:
    """Scores of each side at or above each threshold, as often as a replicate drew them.

    Thresholds descend, from above all scores to below all. Every score is put into its bin once;
    what lies in a bin is then, per fold, a sum of rows of the examples' weights.
    """
    bins = grid.size + 1
    shape = (len(sides) * bins, weights.folds.shape[1])
    most = int(weights.narrow.max(initial=0))

    def of_fold(unit: int) -> tuple[Int[np.ndarray, " K"], Float32[np.ndarray, "K R"]]:
        """The bins that hold something, and what they hold. Whole numbers, so exact."""
        own = scores[rows[unit]]
        taken = np.stack([side[rows[unit]] for side in sides], axis=-1)  # [B, E, S]
        example, target, side = np.nonzero(np.ascontiguousarray(taken.transpose(1, 0, 2)))
        # Bin b holds what is at or above all but b thresholds: the highest come first.
        place = bins * (side + 1) - 1
        place -= np.searchsorted(grid, own[target, example], side="right")
        held = np.bincount(place, minlength=shape[0])
        filled = np.flatnonzero(held)
        number = np.empty(shape[0], np.int32)
        number[filled] = np.arange(filled.size)
        starts = np.append(0, np.cumsum(np.bincount(example, minlength=scores.shape[1])))
        # In the order of examples, whose weights are then read once, from first to last.
        by_example = (np.ones(example.size, np.uint16), number[place], starts.astype(np.int32))
        examples = weights.narrow
        if int(held.max(initial=0)) * most >= 2**16:
            examples = weights.examples
        kind = (filled.size, scores.shape[1])
        product = csc_array(by_example, shape=kind, dtype=examples.dtype) @ examples
        return filled, product * weights.folds[unit]

    total = np.zeros(shape)
    for filled, product in workers.in_order(of_fold, range(len(rows))):
        total[filled] += product
    counts = np.cumsum(total.reshape(len(sides), bins, -1), axis=1)
    return np.concatenate([np.zeros_like(counts[:, :1]), counts], axis=1)


def _percentiles(replicates: np.ndarray) -> list[float]:
    low, high = np.percentile(replicates, [2.5, 97.5])
    return [float(low), float(high)]


def reference_code_summary(curve: Roc) -> dict[str, Any]:
    """The figures as the public LiRA code takes them; keys as in `summary`.

    Its curve leaves out points on a straight line between their neighbours, and its TPR is that of
    the last point whose FPR is strictly below the limit.
    """
    curve = drop_intermediate(curve)
    below = {key: np.flatnonzero(curve.fpr < fpr)[-1] for key, fpr in FPRS.items()}
    return {
        "auc": auc(curve),
        "balanced_accuracy": balanced_accuracy(curve),
        "tpr_at_fpr": {key: float(curve.tpr[point]) for key, point in below.items()},
    }


def drop_intermediate(curve: Roc) -> Roc:
    """The curve as scikit-learn's `roc_curve` gives it by default.

    A point goes when the steps to it and from it are the same; the first after (0, 0) stays.
    """
    steps = np.diff(np.stack([curve.false_positives, curve.true_positives])[:, 1:], axis=1)
    turns = (steps[:, 1:] != steps[:, :-1]).any(axis=0)
    kept = np.ones(curve.false_positives.size, dtype=bool)
    if kept.size > 3:
        kept[2:-1] = turns
    return Roc(curve.false_positives[kept], curve.true_positives[kept])


def thin(curve: Roc, points: int = 2_000) -> Roc:
    """The largest TPR at each of a few log-spaced FPR, to draw and to keep.

    What is left is read as steps: TPR stays until the next point.
    """
    ranks = np.geomspace(1, curve.false_positives[-1], points - 1).round().astype(np.int64)
    ranks = np.unique(np.append(0, ranks))
    corner = np.unique(np.searchsorted(curve.false_positives, ranks, side="right") - 1)
    return Roc(curve.false_positives[corner], curve.true_positives[corner])
