"""How well confidence and accuracy agree, and temperatures that make them. NumPy and SciPy only.

A prediction's confidence is its largest probability; it is correct if the class of that (the first
such, of equal ones) is the label. Every calibration is a map from logits to logits, and
log-probabilities are logits too. All is computed in float64.

All errors but the loss are of the usual plug-in kind: the expected calibration error of finitely
many predictions lies above 0 by chance even where confidence is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax

from lira_jax.evaluation import Fold, mean_and_interval

BINS = 15
# The figures of `summary`, and the largest value each can take.
METRICS = {
    "accuracy": 1.0,
    "loss": np.inf,
    "brier": 2.0,
    "ece": 1.0,
    "adaptive_ece": 1.0,
    "overconfidence_error": 1.0,
}
# A fitted temperature is sought within these multiples of the logits' root mean square about each
# prediction's mean.
RANGE = (1e-2, 1e2)


@dataclass(frozen=True)
class Bins:
    """Predictions by their confidence, in bins (0, 1/B], (1/B, 2/B], … of equal width.

    Sums, so that those of several models add up.

    Attributes:
        counts: predictions in each bin, int [B].
        confidences: sum of their confidence, [B].
        corrects: how many of them are correct, [B].
    """

    counts: Int[np.ndarray, " B"]
    confidences: Float[np.ndarray, " B"]
    corrects: Float[np.ndarray, " B"]

    @property
    def confidence(self) -> Float[np.ndarray, " B"]:
        """Mean confidence; NaN in an empty bin."""
        return _ratio(self.confidences, self.counts)

    @property
    def accuracy(self) -> Float[np.ndarray, " B"]:
        """Share of correct predictions; NaN in an empty bin."""
        return _ratio(self.corrects, self.counts)

    @property
    def ece(self) -> float:
        """Expected calibration error, Σ_B |B|/P · |acc(B) − conf(B)|."""
        return float(np.abs(self.confidences - self.corrects).sum() / self.counts.sum())

    @property
    def overconfidence_error(self) -> float:
        """Σ_B |B|/P · conf(B) · max(conf(B) − acc(B), 0); an empty bin counts 0."""
        # |B|·conf·(conf − acc), in sums.
        excess = np.maximum(self.confidences - self.corrects, 0)
        weighted = self.confidences * excess / np.maximum(self.counts, 1)
        return float(weighted.sum() / self.counts.sum())


def reliability(
    probabilities: Float[np.ndarray, "P K"], labels: Int[np.ndarray, " P"], bins: int = BINS
) -> Bins:
    """What a reliability diagram shows (Guo et al., ICML 2017, section 2).

    Raises:
        ValueError: no predictions, shapes that do not match, labels outside 0 … K−1, no bins.
    """
    return _binned(*_top(probabilities, labels), bins)


def ece(
    probabilities: Float[np.ndarray, "P K"], labels: Int[np.ndarray, " P"], bins: int = BINS
) -> float:
    """Expected calibration error, Σ_B |B|/P · |acc(B) − conf(B)| (Guo et al., ICML 2017, eq. 5).

    Of the predicted class, in bins (lo, hi] of equal width.

    Raises:
        ValueError: as `reliability`.
    """
    return reliability(probabilities, labels, bins).ece


def adaptive_ece(
    probabilities: Float[np.ndarray, "P K"], labels: Int[np.ndarray, " P"], bins: int = BINS
) -> float:
    """`ece` in bins of equally many predictions (Nguyen and O'Connor, EMNLP 2015, section 3).

    The sizes of bins differ by one at most. Predictions of equal confidence that a border parts
    have their mean correctness on both sides, so their order does not matter.

    Raises:
        ValueError: as `reliability`.
    """
    return _adaptive_ece(*_top(probabilities, labels), bins)


def overconfidence_error(
    probabilities: Float[np.ndarray, "P K"], labels: Int[np.ndarray, " P"], bins: int = BINS
) -> float:
    """Σ_B |B|/P · conf(B) · max(conf(B) − acc(B), 0) (Thulasidasan et al., NeurIPS 2019, sec. 3.2).

    Bins as in `ece`, which it never exceeds.

    Raises:
        ValueError: as `reliability`.
    """
    return reliability(probabilities, labels, bins).overconfidence_error


def brier(probabilities: Float[np.ndarray, "P K"], labels: Int[np.ndarray, " P"]) -> float:
    """Mean of Σ_k (p_k − 1[k = y])², from 0 to 2 (Brier, Mon. Weather Rev. 78 (1950), 1).

    Raises:
        ValueError: as `reliability`.
    """
    _check(probabilities, labels)
    p = probabilities.astype(np.float64, copy=False)
    true = np.take_along_axis(p, labels[:, np.newaxis], axis=1)[:, 0]
    return float((np.einsum("pk,pk->p", p, p) - 2 * true + 1).mean())


def summary(logits: Float[np.ndarray, "P K"], labels: Int[np.ndarray, " P"]) -> dict[str, float]:
    """The figures METRICS of one model's predictions; the loss in nats.

    Raises:
        ValueError: as `reliability`.
    """
    return _judged(logits, labels)[0]


def of_ensemble(
    logits: Float[np.ndarray, "N P K"],
    labels: Int[np.ndarray, " P"],
    chosen: Bool[np.ndarray, "N P"],
    fold: Fold,
) -> dict[str, Any]:
    """Calibration of models, each on the predictions chosen of it; ready for `metrics.json`.

    Args:
        logits: of N models on P inputs.
        labels: of the inputs.
        chosen: which predictions count, such as those on members.
        fold: models that share masks, as in `evaluation.intervals`.

    Returns:
        By the names of METRICS, the mean over models of that of each; by those and `_ci` its 95 %
        interval [low, high] by Student's t over folds, within what the figure can be, or None with
        one fold: about other models on these very inputs. reliability: the bins of all predictions
        together, lists counts, confidence, accuracy and spread, the standard deviation between
        models of the accuracy in a bin, each model weighted by its predictions there; None where a
        bin is empty or, of the spread, has predictions of fewer than two models.

    Raises:
        ValueError: as `reliability`, and a model of which nothing is chosen.
    """
    if chosen.shape != logits.shape[:2]:
        raise ValueError(f"logits have shape {logits.shape}, the choice {chosen.shape}")
    judged = [
        _judged(mine[which], labels[which]) for mine, which in zip(logits, chosen, strict=True)
    ]
    errors: dict[str, Any] = {}
    for name, most in METRICS.items():
        values = np.array([own[name] for own, _ in judged])
        errors[name], interval = mean_and_interval(values, fold)
        errors[f"{name}_ci"] = interval and [max(interval[0], 0.0), min(interval[1], most)]
    return errors | {"reliability": _pooled([bins for _, bins in judged])}


def with_temperature(
    logits: Float[np.ndarray, "*N P K"], temperature: float | int | Float[np.ndarray, " N"]
) -> Float[np.ndarray, "*N P K"]:
    """Logits divided by a temperature, one or one per model, in their own precision.

    Temperature 1 changes no bit (Guo et al., ICML 2017, section 4.2).

    Raises:
        ValueError: a temperature that is not positive and finite in the precision of the logits.
    """
    divisor = np.asarray(temperature, logits.dtype)
    if not ((divisor > 0) & np.isfinite(divisor)).all():
        raise ValueError(f"temperature {temperature} is not positive and finite")
    return logits / (divisor[:, np.newaxis, np.newaxis] if divisor.ndim else divisor)


def fit_temperatures(
    logits: Float[np.ndarray, "N P K"], labels: Int[np.ndarray, " P"]
) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Each model's temperature T of the least mean loss of softmax(logits / T), by L-BFGS.

    Guo et al. (ICML 2017, section 4.2). The loss is convex in 1/T, so what is found is the least of
    all. A model's temperature depends on that model alone, and scales with its logits.

    Where the data do not settle it:

    - T is sought within RANGE, times the root mean square s of the model's logits about each
      prediction's mean. Where the loss falls up to an end of that range, T is that end: s/100 for
      a model right on all images, as its loss falls for T → 0; 100·s for one whose logits tell
      nothing of the labels, or mislead.
    - If all logits of each prediction are equal, no temperature matters, and T is 1.

    Args:
        logits: on held-out images.
        labels: of those.

    Returns:
        The temperatures, and whether each is an optimum, not one of the exceptions above.

    Raises:
        ValueError: as `reliability`, or logits that are not finite.
    """
    each = [_fit(mine, labels) for mine in logits]
    return np.array([t for t, _ in each], np.float64), np.array([ok for _, ok in each], bool)


def _fit(logits: Float[np.ndarray, "P K"], labels: Int[np.ndarray, " P"]) -> tuple[float, bool]:
    _check(logits, labels)
    z = logits.astype(np.float64)
    if not np.isfinite(z).all():
        raise ValueError("a temperature cannot be fitted to logits that are not finite")
    # With 0 as the largest logit nothing overflows, and equal logits have a spread of exactly 0.
    z -= z.max(axis=1, keepdims=True)
    unit = float(np.sqrt(z.var(axis=1).mean()))
    if not unit:
        return 1.0, False
    # In this unit the loss is neither flat nor steep at temperature 1, where the search starts.
    z /= unit
    true = np.take_along_axis(z, labels[:, np.newaxis], axis=1).mean()

    def loss_and_slope(log_temperature: np.ndarray) -> tuple[float, np.ndarray]:
        inverse = np.exp(-log_temperature[0])
        weight = np.exp(inverse * z)
        total = weight.sum(axis=1)
        slope = true - (np.einsum("pk,pk->p", weight, z) / total).mean()
        return float(np.log(total).mean() - inverse * true), np.array([inverse * slope])

    low, high = np.log(RANGE)
    # As the loss has one minimum, its slope at the ends says on which side of them that lies.
    if loss_and_slope(np.array([low]))[1][0] >= 0:
        return unit * RANGE[0], False
    if loss_and_slope(np.array([high]))[1][0] <= 0:
        return unit * RANGE[1], False
    optimum = minimize(
        loss_and_slope,
        np.zeros(1),
        jac=True,
        method="L-BFGS-B",
        bounds=[(low, high)],
        # As far as the slope can be told from 0; the loss itself is flat long before.
        options={"ftol": 0.0, "gtol": 1e-12},
    )
    return unit * float(np.exp(optimum.x[0])), True


def _check(values: Float[np.ndarray, "P K"], labels: Int[np.ndarray, " P"]) -> None:
    if values.ndim != 2 or labels.shape != values.shape[:1]:
        raise ValueError(f"predictions have shape {values.shape}, labels {labels.shape}")
    if not labels.size:
        raise ValueError("there are no predictions")
    if labels.min() < 0 or labels.max() >= values.shape[1]:
        raise ValueError(f"labels must be from 0 to {values.shape[1] - 1}")


def _top(
    probabilities: Float[np.ndarray, "P K"], labels: Int[np.ndarray, " P"]
) -> tuple[Float[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
    """Confidence, and is the prediction correct."""
    _check(probabilities, labels)
    first = probabilities.argmax(axis=1)
    confidence = np.take_along_axis(probabilities, first[:, np.newaxis], axis=1)[:, 0]
    return confidence.astype(np.float64), first == labels


def _binned(
    confidence: Float[np.ndarray, " P"], correct: Bool[np.ndarray, " P"], bins: int
) -> Bins:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    place = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    return Bins(
        np.bincount(place, minlength=bins),
        np.bincount(place, confidence, minlength=bins),
        np.bincount(place, correct, minlength=bins),
    )


def _adaptive_ece(
    confidence: Float[np.ndarray, " P"], correct: Bool[np.ndarray, " P"], bins: int
) -> float:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    order = np.argsort(confidence)
    ordered = confidence[order]
    corrects = np.append(0, np.cumsum(correct[order]))
    confidences = np.append(0, np.cumsum(ordered))
    border = np.arange(1, bins) * ordered.size // bins
    # Of equal confidences about a border, as many are correct below it as their mean says.
    first = np.searchsorted(ordered, ordered[border], side="left")
    last = np.searchsorted(ordered, ordered[border], side="right")
    share = (border - first) / (last - first)
    below = corrects[first] + share * (corrects[last] - corrects[first])
    right = np.diff(np.concatenate([[0], below, corrects[-1:]]))
    sure = np.diff(np.concatenate([[0], confidences[border], confidences[-1:]]))
    return float(np.abs(sure - right).sum() / ordered.size)


def _judged(
    logits: Float[np.ndarray, "P K"], labels: Int[np.ndarray, " P"]
) -> tuple[dict[str, float], Bins]:
    """One model's figures, and the bins behind them."""
    _check(logits, labels)
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    confidence, correct = _top(p, labels)
    bins = _binned(confidence, correct, BINS)
    return {
        "accuracy": float(correct.mean()),
        # From logits, so that it does not underflow; in nats.
        "loss": float(-np.take_along_axis(log_p, labels[:, np.newaxis], axis=1).mean()),
        "brier": brier(p, labels),
        "ece": bins.ece,
        "adaptive_ece": _adaptive_ece(confidence, correct, BINS),
        "overconfidence_error": bins.overconfidence_error,
    }, bins


def _pooled(each: list[Bins]) -> dict[str, Any]:
    counts = np.stack([bins.counts for bins in each])
    corrects = np.stack([bins.corrects for bins in each])
    confidences = np.sum([bins.confidences for bins in each], axis=0)
    pooled = Bins(counts.sum(axis=0), confidences, corrects.sum(axis=0))
    apart = np.where(counts > 0, _ratio(corrects, counts) - pooled.accuracy, 0)
    spread = np.sqrt(_ratio((counts * apart**2).sum(axis=0), pooled.counts))
    spread[(counts > 0).sum(axis=0) < 2] = np.nan
    return {
        "counts": pooled.counts.tolist(),
        "confidence": _listed(pooled.confidence),
        "accuracy": _listed(pooled.accuracy),
        "spread": _listed(spread),
    }


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _listed(values: Float[np.ndarray, " B"]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
