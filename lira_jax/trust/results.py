"""What attacks make of inputs from elsewhere and of calibrated predictions: the part `trust` of
`metrics.json`. No JAX.

Every model is a target once. Its attacker tunes on one other model, the first of the next block,
of which all is known: a threshold of the largest balanced accuracy on that model's members and
non-members, and one that at most 1 in 100, or in 1,000, of its non-members reach (Hintersdorf et
al., arXiv 2111.09076, section 4.1, have one shadow model likewise). Only view 0 is used throughout.

An input that no model trained on has no IN models, and so LiRA is asked offline. As many OUT models
are compared with as for an example. Where an input has a label, LiRA and gap are asked about that.
Where it has none, LiRA is asked about what the target predicts, which is all that an attacker could
claim, and gap is not asked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from lira_jax.attacks import lira, references
from lira_jax.config import AttackConfig
from lira_jax.errors import InputError
from lira_jax.findings import Trust
from lira_jax.score_set import ScoreSet, logit_scaled
from lira_jax.trust import attacks, calibration
from lira_jax.trust.judging import Judges, Scores, source_of
from lira_jax.trust.outputs import Kind, Outputs

TITLES = {
    "entropy": "Entropy",
    "max-score": "Maximum score",
    "top-3": "Top-3 scores",
    "gap": "Label-only gap",
    "max-score-calibrated": "Maximum score, per example",
    "lira-offline": "LiRA offline",
    "lira-online": "LiRA online",
}
# Examples that the network on the top three scores learns from.
PAIRS = 10_000


@dataclass(frozen=True, eq=False)
class _Calibrated:
    """Predictions by one calibration.

    Attributes:
        name, title: of it.
        examples: logits of the candidates.
        kinds: logits of each kind, by its name.
        temperature: of each model, by which all of them are still to be divided; None: by none.
        at_bound: models whose fit ended at the end of its range.
    """

    name: str
    title: str
    examples: Float[np.ndarray, "N E K"]
    kinds: Mapping[str, Float[np.ndarray, "N M K"]]
    temperature: Float[np.ndarray, " N"] | None = None
    at_bound: int = 0


def results(
    made: Outputs, score_set: ScoreSet, config: AttackConfig
) -> tuple[dict[str, Any], Trust]:
    """Run and judge every attack under every calibration, on examples and on each kind of inputs.

    Args:
        made: what models predict elsewhere.
        score_set: of the run, with logits, labels and block; without canaries.
        config: temperatures, and the centre of references.

    Returns:
        targets, examples, blocks: numbers. kinds: name, title, inputs (their number), labelled, and
        accuracy, the mean over models, None without labels.

        calibrations, the plain predictions first: name, title; temperature: mean, least and
        greatest over models, at_bound (models whose fit ended at the end of its range), or None;
        members and nonmembers: calibration errors of the examples that a model trained on, and that
        it did not (`calibration.of_ensemble`); attacks, each with name and title; auc, auc_ci,
        tpr_at_fpr, tpr_at_fpr_ci and few_false_positives of the targets' own ROC; decision, at the
        threshold tuned on the source model (tpr, fpr, fnr, balanced_accuracy, precision at even
        odds, and their intervals); low, by the keys of LOW, the same at thresholds for few false
        positives; mmps, the mean maximum prediction score of tp, fp, fn and tn, each a mean over
        targets with its interval, or None where a target has none, and fp_less_tp, by how much that
        of false positives exceeds that of true ones; by_target: auc, tpr and fpr of each target;
        and inputs, one for each kind with the same of members against these inputs: kind, auc,
        auc_ci (None but for plain predictions), decision, low, mmps of fp and tn, by_target: fpr.

        not_run: name, title and reason of calibrations that were not made.

        And what figures are drawn from.

    Raises:
        InputError: fewer than two blocks of models.
    """
    rule = references.find(score_set)
    if rule.order is not None:
        raise InputError(
            f"{score_set.source}: models form no blocks, and the attacks on inputs from elsewhere "
            "need a source model with masks of its own; remove the folder trust"
        )
    calibrated, not_run = _calibrations(made, score_set, config)
    entries = [
        _of_calibration(_divided(predictions), made, score_set, rule.fold, config)
        for predictions in calibrated
    ]
    models, examples = score_set.keep.shape
    metrics = {
        "targets": models,
        "blocks": models // rule.fold,
        "examples": examples,
        "kinds": [
            {
                "name": kind.name,
                "title": kind.title,
                "inputs": len(kind.labels),
                "labelled": _labelled(kind),
                "accuracy": _accuracy(kind),
            }
            for kind in made.kinds
        ],
        "calibrations": entries,
        "not_run": not_run,
    }
    of_kinds = {kind.name: _confidence(kind.logits["plain"]) for kind in made.kinds}
    drawn = Trust(
        confidence=_confidence(calibrated[0].examples),
        of_kinds=of_kinds,
        samples={kind.name: _as_seen(kind) for kind in made.kinds},
    )
    return metrics, drawn


def _by_model(
    statistic: Callable[[Float[np.ndarray, "P K"]], Float[np.ndarray, " R"]],
    logits: Float[np.ndarray, "N P K"],
) -> Float[np.ndarray, "N R"]:
    """One model at a time: float64 of all of them would be several times what is held."""
    return np.stack([statistic(rows) for rows in logits])


def _confidence(logits: Float[np.ndarray, "N P K"]) -> Float[np.ndarray, "N P"]:
    """The maximum prediction score."""
    return expit(_by_model(attacks.max_score, logits))


def _labelled(kind: Kind) -> bool:
    return bool((kind.labels >= 0).all())


def _accuracy(kind: Kind) -> float | None:
    if not _labelled(kind):
        return None
    return float((np.argmax(kind.logits["plain"], axis=-1) == kind.labels).mean())


def _as_seen(kind: Kind) -> np.ndarray:
    """The samples as the network sees them, within what an image can show."""
    pixels = (kind.samples / 127.5 - 1.0) * kind.scale
    return np.round((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)


def _calibrations(
    made: Outputs, score_set: ScoreSet, config: AttackConfig
) -> tuple[list[_Calibrated], list[dict[str, str]]]:
    assert score_set.logits is not None
    plain = {kind.name: kind.logits["plain"] for kind in made.kinds}
    calibrated = [_Calibrated("plain", "none", score_set.logits, plain)]
    not_run = []

    def leave_out(name: str, title: str, reason: str) -> None:
        not_run.append({"name": name, "title": title, "reason": reason})

    for wanted in config.temperatures:
        name, title = f"temperature-{wanted}", f"T = {wanted:g}" if wanted != "fit" else "T fitted"
        if wanted != "fit":
            values, at_bound = np.full(len(score_set.logits), wanted), 0
        elif made.fit is None:
            reason = "no held-out images were predicted: score.py --trust --trust.fit N"
            leave_out(name, title, reason)
            continue
        else:
            logits, labels = made.fit.logits["plain"], made.fit.labels
            values, settled = calibration.fit_temperatures(logits, labels)
            at_bound = int((~settled).sum())
        calibrated.append(_Calibrated(name, title, score_set.logits, plain, values, at_bound))
    for key, title in (("probit", "Laplace, probit"), ("sampled", "Laplace, sampled")):
        if key not in made.candidates:
            reason = "not predicted: score.py --trust --trust.laplace True"
            leave_out(f"laplace-{key}", title, reason)
            continue
        kinds = {kind.name: kind.logits[key] for kind in made.kinds if key in kind.logits}
        calibrated.append(_Calibrated(f"laplace-{key}", title, made.candidates[key], kinds))
    return calibrated, not_run


def _divided(predictions: _Calibrated) -> _Calibrated:
    """The same with logits divided by the temperature, which only one at a time is held so."""
    if predictions.temperature is None:
        return predictions
    by = functools.partial(calibration.with_temperature, temperature=predictions.temperature)
    kinds = {name: by(logits) for name, logits in predictions.kinds.items()}
    return replace(predictions, examples=by(predictions.examples), kinds=kinds)


def _of_calibration(
    predictions: _Calibrated, made: Outputs, score_set: ScoreSet, block: int, config: AttackConfig
) -> dict[str, Any]:
    keep, labels = score_set.keep, score_set.labels
    assert labels is not None
    kinds = [kind for kind in made.kinds if kind.name in predictions.kinds]
    confidence = _confidence(predictions.examples)
    of_kinds = {kind.name: _confidence(predictions.kinds[kind.name]) for kind in kinds}
    judges = Judges(keep, block, confidence, of_kinds)
    attacked = _attack(predictions, kinds, score_set, block, config)
    return {
        "name": predictions.name,
        "title": predictions.title,
        "temperature": None
        if predictions.temperature is None
        else {
            "mean": float(predictions.temperature.mean()),
            "least": float(predictions.temperature.min()),
            "greatest": float(predictions.temperature.max()),
            "at_bound": predictions.at_bound,
        },
        "members": calibration.of_ensemble(predictions.examples, labels, keep, block),
        "nonmembers": calibration.of_ensemble(predictions.examples, labels, ~keep, block),
        "attacks": [
            {"name": name, "title": TITLES[name]}
            | judges.of(scores, 0.5 if name == "gap" else None, with_ci=predictions.name == "plain")
            for name, scores in attacked.items()
        ],
    }


def _attack(
    predictions: _Calibrated,
    kinds: Sequence[Kind],
    score_set: ScoreSet,
    block: int,
    config: AttackConfig,
) -> dict[str, Scores]:
    """Scores of every attack, by its name."""
    keep, labels = score_set.keep, score_set.labels
    assert labels is not None
    logits, own = predictions.examples, {kind.name: predictions.kinds[kind.name] for kind in kinds}
    sources = source_of(len(keep), block)

    def scores(
        examples: Float[np.ndarray, "N E"], of_kinds: Mapping[str, Float[np.ndarray, "N M"]]
    ) -> Scores:
        return Scores(examples, of_kinds, examples[sources])

    def by(statistic: Callable[[np.ndarray], np.ndarray]) -> Scores:
        of_kinds = {name: _by_model(statistic, rows) for name, rows in own.items()}
        return scores(_by_model(statistic, logits), of_kinds)

    def offline(statistic: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N P"]:
        return _likelihoods(statistic, score_set, config)["lira-offline"]

    largest = by(attacks.max_score)
    phi = _by_model(lambda rows: logit_scaled(rows, labels), logits)
    likelihoods = _likelihoods(phi, score_set, config)
    return {
        "entropy": by(attacks.minus_entropy),
        "max-score": largest,
        "top-3": _top_3(logits, own, keep, sources),
        "gap": scores(
            _is_right(logits, labels),
            {
                kind.name: _is_right(own[kind.name], kind.labels)
                for kind in kinds
                if _labelled(kind)
            },
        ),
        "max-score-calibrated": scores(
            offline(largest.examples),
            {name: offline(rows) for name, rows in largest.kinds.items()},
        ),
        "lira-offline": scores(
            likelihoods["lira-offline"],
            {
                kind.name: _offline_of_inputs(own[kind.name], kind.labels, score_set, config)
                for kind in kinds
            },
        ),
        "lira-online": scores(likelihoods["lira-online"], {}),
    }


def _is_right(
    logits: Float[np.ndarray, "N P K"], labels: Int[np.ndarray, " P"]
) -> Float[np.ndarray, "N P"]:
    return (np.argmax(logits, axis=-1) == labels).astype(np.float64)


def _top_3(
    logits: Float[np.ndarray, "N E K"],
    own: Mapping[str, Float[np.ndarray, "N M K"]],
    keep: Bool[np.ndarray, "N E"],
    sources: Int[np.ndarray, " N"],
) -> Scores:
    """Of the network that each target's source model has taught."""
    networks = {
        source: attacks.fit_top_3(logits[source, :PAIRS], keep[source, :PAIRS])
        for source in np.unique(sources).tolist()
    }
    of_sources = {
        source: attacks.top_3(network, logits[source]) for source, network in networks.items()
    }
    chosen = sources.tolist()

    def of(rows: Float[np.ndarray, "N P K"]) -> Float[np.ndarray, "N P"]:
        return np.stack(
            [attacks.top_3(networks[n], mine) for n, mine in zip(chosen, rows, strict=True)]
        )

    return Scores(
        of(logits),
        {name: of(rows) for name, rows in own.items()},
        np.stack([of_sources[n] for n in chosen]),
    )


# LiRA, on examples and on inputs that no model trained on.


def _likelihoods(
    statistic: Float[np.ndarray, "N P"],
    score_set: ScoreSet,
    config: AttackConfig,
    numbers: Int[np.ndarray, " P"] | None = None,
) -> dict[str, Float[np.ndarray, "N P"]]:
    """LiRA on a statistic of the examples, or of inputs of one kind, whose spread is their own.

    Inputs take the masks of the first examples, which only say which models they are compared with:
    as many as an example is.

    Args:
        numbers: of the inputs; default 0 … P − 1.
    """
    numbers = np.arange(statistic.shape[1]) if numbers is None else numbers
    keep = score_set.keep[:, numbers % score_set.keep.shape[1]]
    one_view = ScoreSet(statistic[..., np.newaxis], keep, score_set.block, score_set.source)
    one_query = AttackConfig(queries=1, centre=config.centre)
    return lira.likelihoods(one_view, references.find(one_view), one_query, variances=("",))


def _offline_of_inputs(
    logits: Float[np.ndarray, "N M K"],
    labels: Int[np.ndarray, " M"],
    score_set: ScoreSet,
    config: AttackConfig,
) -> Float[np.ndarray, "N M"]:
    """LiRA offline; where an input has no label, each target's own prediction is taken for it."""
    _, inputs, classes = logits.shape
    asked = np.where(labels < 0, logits.argmax(axis=2), labels)  # [N, M]
    # Each input and class that any target is asked about, once.
    pairs, place = np.unique(np.arange(inputs) * classes + asked, return_inverse=True)
    numbers, about = np.divmod(pairs, classes)
    phi = _by_model(lambda rows: logit_scaled(rows[numbers], about), logits)
    scores = _likelihoods(phi, score_set, config, numbers)["lira-offline"]
    return np.take_along_axis(scores, place.reshape(asked.shape), axis=1)
