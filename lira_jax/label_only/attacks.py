"""Attacks that see labels alone (Choquette-Choo et al., arXiv 2007.14321; docs/methods.md, 4).

They work on what live models answered (`label_only/answers.py`). The attacker owns the source
models. Everything is tuned on them, pooled where there are several: thresholds, which angle,
distance or strength of noise to ask with, the weights of attack networks. Targets are decided about
with what was tuned. Higher scores mean members.

| attack | score |
|---|---|
| `gap` | is the image given its label? (Yeom et al.) |
| `augmentation-rotation`, `-translation` | an attack network on which views are given it |
| `noise-gaussian`, `noise-bernoulli` | share of noisy copies that are; 0 if the image is not |
| `boundary` | distance to the decision boundary, by labels alone; 0 if the image is not |
| `combined` | an attack network on the distances of the translated copies |
| `lira-label-only` | likelihood ratio of the distance, by the distances under other models |
| `carlini-wagner` | the distance by gradients: a reference, not a label-only attack |

Beside them, for comparison, what an attacker reaches who sees confidences:

- `confidence`: the largest confidence, whatever its class, as in the paper, whose attack sees the
  vector of confidences. Taken as log(p/(1 − p)), which ranks alike and does not saturate.
- `confidence-memguard`: the same where MemGuard serves the confidences. The largest is then one
  constant, so the attack is at ½ exactly.
- `confidence-true-label`: φ of the true label, which is stronger, as a high confidence in a wrong
  class speaks against a member. Under MemGuard only right and wrong are left of it, and it becomes
  `gap`: so it has no row of its own there.

An attack network has two hidden layers of ten ReLUs. What it is fitted on scores too high, so
options are compared, and thresholds chosen, by scores from networks that were fitted on other
examples; targets get the network fitted on all of the source models' examples.

`lira-label-only` is LiRA with log(1 + d/m) for a score, d being the distance and m the median
positive one under the source models: distances are skewed to the right, and where they are 0 there
is no logarithm. Its variances are shrunk, since live models are few. A target's references are the
other targets outside its block; those of a source model, from which the threshold comes, all
targets. Blocks of which not every model was asked have no equal numbers of references
(docs/methods.md, 3.10), so models of theirs are neither attacked nor references.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits

from lira_jax import evaluation
from lira_jax.attacks import lira, references
from lira_jax.config import AttackConfig
from lira_jax.defences.memguard import memguard
from lira_jax.label_only.answers import Answers, LabelAnswers
from lira_jax.score_set import ScoreSet, logit_scaled

HIDDEN = (10, 10)
# Parts into which examples are cut for scores from networks fitted on other examples.
PARTS = 3
# Pairs of a source model and an example: at least of each kind, and at most in all, for a network.
MIN_PAIRS = 20
MAX_PAIRS = 20_000

Sees = Literal["labels", "confidences", "gradients"]


@dataclass(frozen=True)
class Attacked:
    """One attack, tuned on the source models and applied to the targets.

    Attributes:
        sees: what the attacker sees of a model.
        sources: scores of the source models, from which the threshold comes.
        targets: scores of the attacked targets.
        rows: which of the targets these are.
        threshold: a target's example is called a member if its score is at least that.
        on_sources: balanced accuracy of that threshold on the source models.
        queries: labels asked of a target for one example, on average; None if it is not by labels.
        chosen: what else was tuned, for people; empty if nothing.
    """

    sees: Sees
    sources: Float[np.ndarray, "S L"]
    targets: Float[np.ndarray, "T L"]
    rows: Int[np.ndarray, " T"]
    threshold: float
    on_sources: float
    queries: float | None
    chosen: str = ""


class NotRun(Exception):
    """An attack that these answers do not allow; its text says what is missing."""


@dataclass(frozen=True)
class OnAnswers:
    """An attack on answers.

    Attributes:
        title: what tables and legends call it.
        attack: what computes it; raises NotRun.
        option: with what `score.py --label-only` asks for it; empty if it always does.
        needs: arrays without which it cannot run.
    """

    title: str
    attack: Callable[[LabelAnswers], Attacked]
    option: str = ""
    needs: tuple[str, ...] = ()


def attack(
    answers: LabelAnswers, *, beside: Mapping[str, Float[np.ndarray, "N L"]] | None = None
) -> tuple[dict[str, Attacked], dict[str, str]]:
    """Every attack that the answers allow.

    Args:
        answers: of source models and targets.
        beside: scores of attacks that see confidences, under the models asked and on the examples
            of the run, to be tuned and judged in the same way.

    Returns:
        Attacks by name, in the order of tables, and why others were not run.
    """
    done: dict[str, Attacked] = {}
    not_run: dict[str, str] = {}
    for name, scores in (beside or {}).items():
        done[name] = _by_threshold(answers, scores[:, : _asked(answers)], "confidences", None)
    for name, known in ATTACKS.items():
        if any(need not in answers.answers for need in known.needs):
            option = known.option and f" {known.option}"
            not_run[name] = f"needs answers: python score.py --run DIR --label-only{option}"
            continue
        try:
            done[name] = known.attack(answers)
        except NotRun as reason:
            not_run[name] = str(reason)
    return done, not_run


def by_budget(answers: LabelAnswers) -> Iterator[tuple[int, Attacked]]:
    """The boundary attack within each number of queries; nothing where there are no distances."""
    if "boundary" in answers.answers:
        boundary = answers.answers["boundary"]
        for place, queries in enumerate(boundary.settings["checkpoints"]):
            distances = boundary.values[..., place]
            yield queries, _by_threshold(answers, distances, "labels", float(queries))


def _asked(answers: LabelAnswers) -> int:
    """Examples that were asked about at all."""
    return max(asked.values.shape[1] for asked in answers.answers.values())


def _by_threshold(
    answers: LabelAnswers,
    scores: Float[np.ndarray, "N L"],
    sees: Sees,
    queries: float | None,
    chosen: str = "",
) -> Attacked:
    """One threshold on a score of all models asked."""
    scores = np.asarray(scores, np.float64)
    own, others = scores[: answers.sources], scores[answers.sources :]
    return _tuned(answers, sees, own, others, queries, chosen)


def _tuned(
    answers: LabelAnswers,
    sees: Sees,
    own: Float[np.ndarray, "S L"],
    others: Float[np.ndarray, "T L"],
    queries: float | None,
    chosen: str = "",
    rows: Int[np.ndarray, " T"] | None = None,
) -> Attacked:
    """The attack of the threshold that is best on the source models' scores."""
    member = answers.keep[: answers.sources, : own.shape[1]]
    return Attacked(
        sees=sees,
        sources=own,
        targets=others,
        rows=np.arange(len(others)) if rows is None else rows,
        threshold=evaluation.best_threshold(own, member),
        on_sources=evaluation.balanced_accuracy(evaluation.roc(own, member)),
        queries=queries,
        chosen=chosen,
    )


def _confidence(
    change: Callable[[np.ndarray], np.ndarray] | None = None, *, of_label: bool = False
) -> Callable[[LabelAnswers], Attacked]:
    """Thresholds on confidences, of the label or the largest, as they are or as they are served."""

    def scores_of(answers: LabelAnswers) -> Attacked:
        asked = _asked(answers)
        if of_label:
            return _by_threshold(answers, answers.scores[:, :asked], "confidences", None)
        scores = np.empty((len(answers.models), asked))
        for row, logits in zip(scores, answers.logits, strict=True):
            served = np.asarray(logits[:asked], np.float64)
            if change is not None:
                served = change(served)
            row[:] = logit_scaled(served, served.argmax(axis=1))
        return _by_threshold(answers, scores, "confidences", None)

    return scores_of


def _gap(answers: LabelAnswers) -> Attacked:
    return _by_threshold(answers, answers.answers["correct"].values, "labels", 1.0)


def _noise(name: str) -> Callable[[LabelAnswers], Attacked]:
    """The share of noisy copies that are given the label, of the strength that is best."""

    def strongest(answers: LabelAnswers) -> Attacked:
        noisy = answers.answers[name]
        asked = noisy.values.shape[1]
        right = answers.answers["correct"].values[:, :asked]
        copies = int(noisy.settings["copies"])
        sign = "σ" if name == "noise" else "p"
        tried = [
            _by_threshold(
                answers, noisy.values[..., place] * right, "labels", 1.0 + copies,
                f"{sign} = {strength:g}",
            )
            for place, strength in enumerate(noisy.settings[name])
        ]  # fmt: skip
        return max(tried, key=lambda attacked: attacked.on_sources)

    return strongest


def _augmentation(name: str) -> Callable[[LabelAnswers], Attacked]:
    """The attack network on views of the angle or distance that is best."""

    def strongest(answers: LabelAnswers) -> Attacked:
        bits = answers.answers[name]
        tried = []
        first = 1  # view 0 is the image itself
        for strength in bits.settings[f"{name}s"]:
            count = 2 if name == "rotation" else 4 * int(strength)
            views = np.r_[0, first : first + count]
            first += count
            words = f"r = {strength:g}°" if name == "rotation" else f"d = {int(strength)}"
            tried.append((views, words))
        return _best_network(answers, bits, tried, lambda views: float(len(views)))

    return strongest


def _combined(answers: LabelAnswers) -> Attacked:
    distances = answers.answers["combined"]
    copies = distances.values.shape[2]
    tried = [(np.arange(copies), f"d = {int(distances.settings['distance'])}")]
    spent = copies * _spent(answers, "combined", distances.settings["budget"])
    return _best_network(answers, distances, tried, lambda views: spent)


def _boundary(answers: LabelAnswers) -> Attacked:
    boundary = answers.answers["boundary"]
    return _by_threshold(answers, boundary.values[..., -1], "labels", _spent_on_boundary(answers))


def _spent_on_boundary(answers: LabelAnswers) -> float:
    budget = answers.answers["boundary"].settings["checkpoints"][-1]
    return _spent(answers, "boundary", budget)


def _spent(answers: LabelAnswers, name: str, budget: float) -> float:
    """Labels asked of a target for one distance, on average; the budget if it is not known."""
    spent = answers.answers.get(f"{name}_queries")
    if spent is None:
        return float(budget)
    return float(spent.values[answers.sources :].mean(dtype=np.float64))


def _carlini_wagner(answers: LabelAnswers) -> Attacked:
    return _by_threshold(answers, answers.answers["carlini_wagner"].values, "gradients", None)


def _lira(answers: LabelAnswers) -> Attacked:
    distances = np.asarray(answers.answers["boundary"].values[..., -1], np.float64)
    positive = distances[: answers.sources][distances[: answers.sources] > 0]
    if not positive.size:
        raise NotRun("needs distances above 0 under the source models")
    scores = np.log1p(distances / np.median(positive))[..., np.newaxis]
    models = np.array(answers.models[answers.sources :])
    block = models // answers.block
    numbers, count = np.unique(block, return_counts=True)
    whole = numbers[count == answers.block]
    if whole.size < 2:
        raise NotRun(
            f"needs two or more blocks of {answers.block} models of which each is a target: train "
            "more models, or name more with --label_only.targets"
        )
    rows = np.flatnonzero(np.isin(block, whole))
    rows = rows[np.argsort(models[rows])]
    others = answers.sources + rows
    asked = scores.shape[1]
    of_targets = ScoreSet(
        scores[others], answers.keep[others, :asked], answers.block, answers.origin
    )
    rule = references.find(of_targets)

    def ratios(targets: np.ndarray | None) -> Float[np.ndarray, "M L"]:
        return lira.likelihoods(
            of_targets, rule, AttackConfig(), targets=targets, variances=("-shrinkage",)
        )["lira-online-shrinkage"]

    own = ratios(scores[: answers.sources])
    spent = _spent_on_boundary(answers)
    return _tuned(answers, "labels", own, ratios(None), spent, rule.words, rows)


def _best_network(
    answers: LabelAnswers,
    inputs: Answers,
    tried: list[tuple[Int[np.ndarray, " _"], str]],
    queries: Callable[[Int[np.ndarray, " _"]], float],
) -> Attacked:
    """The attack network on those columns of inputs that tell most on the source models."""
    sources = answers.sources
    asked = inputs.values.shape[1]
    member = answers.keep[:sources, :asked]
    if min(member.sum(), (~member).sum()) < MIN_PAIRS:
        raise NotRun(
            f"needs {MIN_PAIRS} members and as many non-members of the source models: ask about "
            "more with --label_only.examples"
        )
    own = np.asarray(inputs.values[:sources], np.float64)
    # Threads gain nothing on networks this small, and lose much where cores are busy.
    with threadpool_limits(1, "blas"):
        unseen = [_cross_fitted(own[..., views], member) for views, _ in tried]
        accuracy = [
            evaluation.balanced_accuracy(evaluation.roc(scores, member)) for scores in unseen
        ]
        best = int(np.argmax(accuracy))
        views, words = tried[best]
        network = _fit(own[..., views], member)
        scores = [network(np.asarray(row, np.float64)[:, views]) for row in inputs.values[sources:]]
    return _tuned(answers, "labels", unseen[best], np.stack(scores), queries(views), words)


def _cross_fitted(
    inputs: Float[np.ndarray, "S L V"], member: Bool[np.ndarray, "S L"]
) -> Float[np.ndarray, "S L"]:
    """Scores of each example from a network that saw it under no model."""
    scores = np.empty(member.shape)
    part = np.random.default_rng(0).permutation(member.shape[1]) % PARTS
    for held_out in (part == number for number in range(PARTS)):
        network = _fit(inputs[:, ~held_out], member[:, ~held_out])
        for row, own in zip(scores, inputs, strict=True):
            row[held_out] = network(own[held_out])
    return scores


def _fit(
    inputs: Float[np.ndarray, "S L V"], member: Bool[np.ndarray, "S L"]
) -> Callable[[Float[np.ndarray, "P V"]], Float[np.ndarray, " P"]]:
    """A fitted attack network, as a function to the probability of membership."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pairs = np.random.default_rng(0).permutation(member.size)[:MAX_PAIRS]
    network: Any = make_pipeline(StandardScaler(), MLPClassifier(HIDDEN, random_state=0))
    with warnings.catch_warnings():
        # Two hundred passes are enough to rank by, converged or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(inputs.reshape(member.size, -1)[pairs], member.ravel()[pairs])
    of_members = list(network.classes_).index(True)
    return lambda some: network.predict_proba(some)[:, of_members]


ATTACKS: dict[str, OnAnswers] = {
    "confidence": OnAnswers("Largest confidence", _confidence()),
    "confidence-memguard": OnAnswers("Largest confidence under MemGuard", _confidence(memguard)),
    "confidence-true-label": OnAnswers("Confidence of the true label", _confidence(of_label=True)),
    "gap": OnAnswers("Gap (right or wrong)", _gap, needs=("correct",)),
    "augmentation-rotation": OnAnswers(
        "Rotated views", _augmentation("rotation"), '--label_only.rotations "1, 4, 8"',
        ("rotation",),
    ),
    "augmentation-translation": OnAnswers(
        "Translated views", _augmentation("translation"), '--label_only.translations "1, 2"',
        ("translation",),
    ),
    "noise-gaussian": OnAnswers(
        "Gaussian noise", _noise("noise"), '--label_only.noise "0.02, 0.05, 0.1"',
        ("correct", "noise"),
    ),
    "noise-bernoulli": OnAnswers(
        "Flipped features", _noise("flips"), '--label_only.flips "0.01, 0.05, 0.1"',
        ("correct", "flips"),
    ),
    "boundary": OnAnswers(
        "Distance to the boundary", _boundary, "--label_only.budget 2500", ("boundary",)
    ),
    "combined": OnAnswers(
        "Distances of translated views", _combined, "--label_only.combined 1", ("combined",)
    ),
    "lira-label-only": OnAnswers(
        "LiRA on the distance", _lira, "--label_only.budget 2500", ("boundary",)
    ),
    "carlini-wagner": OnAnswers(
        "Distance by gradients (Carlini and Wagner)", _carlini_wagner,
        "--label_only.carlini_wagner 100", ("carlini_wagner",),
    ),
}  # fmt: skip
