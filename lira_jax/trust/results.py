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

from lira_jax import evaluation
from lira_jax.attacks import lira, references
from lira_jax.config import AttackConfig, temperatures
from lira_jax.errors import InputError
from lira_jax.findings import Trust
from lira_jax.score_set import ScoreSet, logit_scaled
from lira_jax.trust import attacks as attacks
from lira_jax.trust import calibration
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
# FPR on the source model's non-members at which the second and third threshold are set.
LOW = {"0.01": 0.01, "0.001": 0.001}
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
        _of_calibration(_divided(one), made, score_set, rule.fold, config) for one in calibrated
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
    held = Trust(
        confidence=_confidence(calibrated[0].examples),
        of_kinds=of_kinds,
        samples={kind.name: _as_seen(kind) for kind in made.kinds},
    )
    return metrics, held


def _by_model(
    statistic: Callable[[Float[np.ndarray, "P K"]], Float[np.ndarray, " P"]],
    logits: Float[np.ndarray, "N P K"],
) -> Float[np.ndarray, "N P"]:
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
    found = [_Calibrated("plain", "none", score_set.logits, plain)]
    not_run = []
    for wanted in temperatures(config):
        name, title = f"temperature-{wanted}", f"T = {wanted:g}" if wanted != "fit" else "T fitted"
        if wanted == "fit":
            if made.fit is None:
                not_run.append({
                    "name": name,
                    "title": title,
                    "reason": "no held-out images were predicted: score.py --trust --trust.fit N",
                })  # fmt: skip
                continue
            values, settled = calibration.fit_temperatures(
                made.fit.logits["plain"], made.fit.labels
            )
            at_bound = int((~settled).sum())
        else:
            values, at_bound = np.full(len(score_set.logits), wanted), 0
        found.append(_Calibrated(name, title, score_set.logits, plain, values, at_bound))
    for key, title in (("probit", "Laplace, probit"), ("sampled", "Laplace, sampled")):
        name = f"laplace-{key}"
        if key not in made.candidates:
            reason = "not predicted: score.py --trust --trust.laplace True"
            not_run.append({"name": name, "title": title, "reason": reason})
            continue
        kinds = {kind.name: kind.logits[key] for kind in made.kinds if key in kind.logits}
        found.append(_Calibrated(name, title, made.candidates[key], kinds))
    return found, not_run


def _divided(one: _Calibrated) -> _Calibrated:
    """The same with logits divided by the temperature, which only one at a time is held so."""
    if one.temperature is None:
        return one
    by = functools.partial(calibration.with_temperature, temperature=one.temperature)
    kinds = {name: by(logits) for name, logits in one.kinds.items()}
    return replace(one, examples=by(one.examples), kinds=kinds)


# One calibration.


@dataclass(frozen=True, eq=False)
class _Scores:
    """Scores of one attack, higher = member.

    Attributes:
        examples: of each target on all candidates.
        kinds: of each target on the inputs of each kind, by its name.
        source: of each target's source model on all candidates, as its attacker sees them.
    """

    examples: Float[np.ndarray, "N E"]
    kinds: Mapping[str, Float[np.ndarray, "N M"]]
    source: Float[np.ndarray, "N E"]


def _of_calibration(
    one: _Calibrated, made: Outputs, score_set: ScoreSet, block: int, config: AttackConfig
) -> dict[str, Any]:
    keep, labels = score_set.keep, score_set.labels
    assert labels is not None
    kinds = [kind for kind in made.kinds if kind.name in one.kinds]
    confidence = _confidence(one.examples)
    of_kinds = {kind.name: _confidence(one.kinds[kind.name]) for kind in kinds}
    judges = _Judges(keep, block, confidence, of_kinds)
    attacked = _attack(one, kinds, score_set, block, config)
    return {
        "name": one.name,
        "title": one.title,
        "temperature": None
        if one.temperature is None
        else {
            "mean": float(one.temperature.mean()),
            "least": float(one.temperature.min()),
            "greatest": float(one.temperature.max()),
            "at_bound": one.at_bound,
        },
        "members": calibration.of_ensemble(one.examples, labels, keep, block),
        "nonmembers": calibration.of_ensemble(one.examples, labels, ~keep, block),
        "attacks": [
            {"name": name, "title": TITLES[name]}
            | judges.of(scores, 0.5 if name == "gap" else None, with_ci=one.name == "plain")
            for name, scores in attacked.items()
        ],
    }


def source_of(models: int, block: int) -> Int[np.ndarray, " N"]:
    """The source model of each target: the first of the next block."""
    return (np.arange(models) // block + 1) % (models // block) * block


def _attack(
    one: _Calibrated, kinds: Sequence[Kind], score_set: ScoreSet, block: int, config: AttackConfig
) -> dict[str, _Scores]:
    """Scores of every attack, by its name."""
    keep, labels = score_set.keep, score_set.labels
    assert labels is not None
    logits, own = one.examples, {kind.name: one.kinds[kind.name] for kind in kinds}
    sources = source_of(len(keep), block)

    def scores(
        examples: Float[np.ndarray, "N E"], of_kinds: Mapping[str, Float[np.ndarray, "N M"]]
    ) -> _Scores:
        return _Scores(examples, of_kinds, examples[sources])

    def by(statistic: Callable[[np.ndarray], np.ndarray]) -> _Scores:
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
) -> _Scores:
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

    return _Scores(
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
    found = _likelihoods(phi, score_set, config, numbers)["lira-offline"]
    return np.take_along_axis(found, place.reshape(asked.shape), axis=1)


# Judging.


@dataclass(frozen=True, eq=False)
class _Judges:
    """What decisions are judged by.

    Attributes:
        keep: membership of the examples.
        block: models that share masks.
        confidence: maximum prediction score of the examples.
        of_kinds: that of each kind's inputs.
    """

    keep: Bool[np.ndarray, "N E"]
    block: int
    confidence: Float[np.ndarray, "N E"]
    of_kinds: Mapping[str, Float[np.ndarray, "N M"]]

    def of(self, scores: _Scores, cut: float | None, *, with_ci: bool) -> dict[str, Any]:
        """An attack's figures (see `results`); `cut` is its threshold where it needs no tuning."""
        keep, examples = self.keep, self.keep.shape[1]
        # All kinds beside the examples, so that each is judged by the same resamples of members.
        whole = np.concatenate([scores.examples, *scores.kinds.values()], axis=1)
        ends = np.cumsum([examples, *(rows.shape[1] for rows in scores.kinds.values())])
        places = dict(zip(scores.kinds, map(slice, ends[:-1], ends[1:]), strict=True))
        member = np.zeros(whole.shape, bool)
        member[:, :examples] = keep
        others = {"": np.zeros(whole.shape, bool)}
        others[""][:, :examples] = ~keep
        for name, place in places.items():
            others[name] = np.zeros(whole.shape, bool)
            others[name][:, place] = True
        called, decided = {}, {}
        for key, least in self._tuned(scores.source, cut).items():
            called[key] = whole >= least[:, np.newaxis]
            decided[key] = {
                name: _with_fnr(found)
                for name, found in evaluation.decisions_against(
                    called[key], member, others, self.block
                ).items()
            }
        best = called["decision"]
        curve = evaluation.roc(scores.examples, keep)
        found = evaluation.intervals(scores.examples, keep, self.block)
        nonmembers, positive = keep.size - int(keep.sum()), best[:, :examples]
        by_target = [evaluation.roc(*pair) for pair in zip(scores.examples, keep, strict=True)]
        inputs = []
        for name, place in places.items():
            interval, both = None, member | others[name]
            if with_ci:
                drawn = evaluation.intervals(whole, member, self.block, nonmember=others[name])
                interval = drawn["auc_ci"]
            inputs.append(
                {
                    "kind": name,
                    "auc": evaluation.auc(evaluation.roc(whole[both], member[both])),
                    "auc_ci": interval,
                    "decision": decided["decision"][name],
                    "low": {key: decided[key][name] for key in LOW},
                    "mmps": {
                        "fp": self._mmps(self.of_kinds[name], best[:, place]),
                        "tn": self._mmps(self.of_kinds[name], ~best[:, place]),
                    },
                    "by_target": {"fpr": best[:, place].mean(axis=1).tolist()},
                }
            )
        return {
            "auc": evaluation.auc(curve),
            "auc_ci": found["auc_ci"],
            "tpr_at_fpr": evaluation.summary(curve)["tpr_at_fpr"],
            "tpr_at_fpr_ci": found["tpr_at_fpr_ci"],
            "few_false_positives": evaluation.few_false_positives(nonmembers),
            "decision": decided["decision"][""],
            "low": {key: decided[key][""] for key in LOW},
            "mmps": {
                "tp": self._mmps(self.confidence, positive & keep),
                "fp": self._mmps(self.confidence, positive & ~keep),
                "fn": self._mmps(self.confidence, ~positive & keep),
                "tn": self._mmps(self.confidence, ~positive & ~keep),
                "fp_less_tp": self._over_targets(
                    _means(self.confidence, positive & ~keep)
                    - _means(self.confidence, positive & keep)
                ),
            },
            "by_target": {
                "auc": [evaluation.auc(one) for one in by_target],
                "tpr": _share(positive, keep),
                "fpr": _share(positive, ~keep),
            },
            "inputs": inputs,
        }

    def _tuned(
        self, source: Float[np.ndarray, "N E"], cut: float | None
    ) -> dict[str, Float[np.ndarray, " N"]]:
        """Each target's thresholds, from its source model."""
        models = len(self.keep)
        tuned = {key: np.empty(models) for key in ("decision", *LOW)}
        for target, place in enumerate(source_of(models, self.block)):
            seen, scores = self.keep[place], source[target]
            best = evaluation.best_threshold(scores, seen) if cut is None else cut
            tuned["decision"][target] = best
            for key, fpr in LOW.items():
                tuned[key][target] = _above(scores[~seen], fpr)
        return tuned

    def _mmps(
        self, confidence: Float[np.ndarray, "N P"], chosen: Bool[np.ndarray, "N P"]
    ) -> dict[str, Any] | None:
        """The mean over targets of the mean maximum prediction score of what is chosen."""
        return self._over_targets(_means(confidence, chosen))

    def _over_targets(self, values: Float[np.ndarray, " N"]) -> dict[str, Any] | None:
        """Mean and interval over the targets that have a value; None where one has none."""
        if not np.isfinite(values).all():
            return None
        mean, interval = evaluation.mean_and_interval(values, self.block)
        return {"mean": mean, "ci": interval}


def _above(nonmembers: Float[np.ndarray, " S"], fpr: float) -> float:
    """The least threshold that at most this share of these scores reach."""
    place = nonmembers.size - 1 - int(fpr * nonmembers.size * (1 + 1e-12))
    return float(np.nextafter(np.partition(nonmembers, place)[place], np.inf))


def _with_fnr(found: dict[str, Any]) -> dict[str, Any]:
    low, high = found["tpr_ci"]
    return found | {"fnr": 1 - found["tpr"], "fnr_ci": [1 - high, 1 - low]}


def _share(called: Bool[np.ndarray, "N P"], of: Bool[np.ndarray, "N P"]) -> list[float]:
    """The share of each target's that is called a member."""
    return ((called & of).sum(axis=1) / of.sum(axis=1)).tolist()


def _means(
    values: Float[np.ndarray, "N P"], chosen: Bool[np.ndarray, "N P"]
) -> Float[np.ndarray, " N"]:
    """The mean of what is chosen of each row; NaN where nothing is."""
    count = chosen.sum(axis=1)
    total = np.where(chosen, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
