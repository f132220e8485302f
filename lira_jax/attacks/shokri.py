"""Attack models on outputs (Shokri, Stronati, Song, Shmatikov, arXiv 1610.05820).

docs/methods.md, 2. For each class, a network with one hidden layer of 64 ReLUs, as in the paper,
learns from other models' outputs on that class's examples which of them were members
(`cross_fit`). The score is its log-odds, straight from the last layer, so that confident outputs do
not tie.

Its input is log p_y and then the log-probabilities of the most likely other classes, at most
OTHERS, in descending order, each standardised. Logarithms, because outputs that softmax rounds to 1
differ in them. In that order, because an attack model has few pairs to learn from, and which class
comes second says little about membership; and because one attack model for all classes can read
the same input. Classes with fewer than MIN_PAIRS pairs of a kind fall back on that one. Where even
all classes together have fewer, there is no attack model, and the log-odds are 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from lira_jax import workers
from lira_jax.attacks import cross_fit, draws
from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

OTHERS = 9
HIDDEN = 64
# Many pairs a few times rather than few pairs often: these networks overfit. At least SEEN in all.
EPOCHS = 5
SEEN = 4_000
LEARNING_RATE = 0.01
# Pairs of each kind, IN and OUT: at least behind one attack model; at most behind the attack models
# of all classes together, or behind the one for all classes.
MIN_PAIRS = 20
MAX_PAIRS = 40_000


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`shokri`, float64, higher = member. Holds the logits of one model at a time."""
    del config
    labels, logits = score_set.labels, score_set.logits
    assert labels is not None
    assert logits is not None
    result = np.zeros(score_set.keep.shape)
    splits = cross_fit.splits(score_set, references)
    noise = draws.noise(score_set)
    # Threads gain nothing on networks this small, and lose much where cores are busy.
    with threadpool_limits(1, "blas"):
        shown = workers.bar(splits, len(splits), "shokri: attack models", progress)
        networks = [_fit(score_set, noise, split) for split in shown]
    attacked = [
        {label: np.flatnonzero(split.examples & (labels == label)) for label in np.unique(labels)}
        for split in splits
    ]

    def attack_target(target: int) -> None:
        inputs = features(np.asarray(logits[target]), labels)
        for split, network_of, examples_of in zip(splits, networks, attacked, strict=True):
            if split.targets[target]:
                for label, network in network_of.items():
                    examples = examples_of[label]
                    result[target, examples] = network.log_odds(inputs[examples])

    targets = range(len(result))
    workers.each(attack_target, targets, description="shokri: targets", progress=progress)
    return {"shokri": result}


def features(
    logits: Float[np.ndarray, "P K"], labels: Int[np.ndarray, " P"]
) -> Float[np.ndarray, "P J"]:
    """Log p_y, then the greatest of the other log-probabilities, descending; float64."""
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    rows, classes = np.arange(len(labels)), log_p.shape[1]
    true = log_p[rows, labels]
    log_p[rows, labels] = -np.inf
    first = classes - min(OTHERS, classes - 1)
    others = np.sort(np.partition(log_p, first, axis=1)[:, first:], axis=1)
    return np.column_stack([true, others[:, ::-1]])


@dataclass(frozen=True)
class Network:
    """A fitted attack model.

    Attributes:
        mean, std: of each input over the pairs it was fitted on.
        layers: weights [inputs, outputs] and biases [outputs], ReLUs between them.
    """

    mean: Float[np.ndarray, " J"]
    std: Float[np.ndarray, " J"]
    layers: tuple[tuple[Float[np.ndarray, "I O"], Float[np.ndarray, " O"]], ...]

    def log_odds(self, inputs: Float[np.ndarray, "P J"]) -> Float[np.ndarray, " P"]:
        """Log-odds of membership."""
        hidden = (inputs - self.mean) / self.std
        for weights, biases in self.layers[:-1]:
            hidden = np.maximum(hidden @ weights + biases, 0.0)
        weights, biases = self.layers[-1]
        return (hidden @ weights + biases)[:, 0]


def _fit(score_set: ScoreSet, noise: np.ndarray, split: cross_fit.Split) -> dict[int, Network]:
    """The attack model of every class, by its label; none where even all classes are too few."""
    labels, logits, keep = score_set.labels, score_set.logits, score_set.keep
    assert labels is not None
    assert logits is not None
    models, rest = np.flatnonzero(~split.targets), ~split.examples

    def fit(chosen: Bool[np.ndarray, " E"], most: int) -> Network | None:
        model, example = cross_fit.balanced_pairs(noise, keep, models, np.flatnonzero(chosen), most)
        if len(model) < 2 * MIN_PAIRS:
            return None
        return fit_network(
            features(np.asarray(logits[model, example]), labels[example]), keep[model, example]
        )

    classes = np.unique(labels)
    most = max(MIN_PAIRS, MAX_PAIRS // len(classes))
    own = {label: fit(rest & (labels == label), most) for label in classes}
    pooled = fit(rest, MAX_PAIRS) if None in own.values() else None
    chosen = {label: network or pooled for label, network in own.items()}
    return {label: network for label, network in chosen.items() if network is not None}


def fit_network(inputs: Float[np.ndarray, "P J"], member: Bool[np.ndarray, " P"]) -> Network:
    """An attack model from pairs of input and membership."""
    from sklearn.neural_network import MLPClassifier

    mean, std = inputs.mean(axis=0), inputs.std(axis=0)
    std[std == 0] = 1.0
    network = MLPClassifier((HIDDEN,), learning_rate_init=LEARNING_RATE, random_state=0)
    inputs = (inputs - mean) / std
    for _ in range(max(EPOCHS, -(-SEEN // len(inputs)))):
        # `fit` would warn that so few epochs have not converged.
        network.partial_fit(inputs, member, classes=[False, True])
    return Network(mean, std, tuple(zip(network.coefs_, network.intercepts_, strict=True)))
