"""RMIA (Zarifzadeh, Liu, Shokri, ICML 2024, arXiv 2312.03262; docs/methods.md, 2).

How much likelier does the target θ make example x than models in general do, against how much
likelier it makes other examples z of the population?

    ratio(x) = p(x|θ) / p(x),        score(x) = Pr_z[ ratio(x) / ratio(z) ≥ γ ]

- p(x|θ) is the probability of the true label, averaged over the views used: a vote over views
  would leave scores as coarse as the vote. (The authors' code smooths the softmax further, which
  needs logits of every view, and trims the mean over references.)
- p(x) is that probability averaged over the target's references. `rmia-online` takes IN and OUT
  half each, ½(p_in + p_out); `rmia-offline` has OUT references alone and takes
  ½((1 + a) p_out + 1 − a).
- z are all other examples of the run, x itself not among them. Their p(z) comes from the same
  references and by the same formula, so the target's own block is left out there too, and an
  attacker who asks about x treats every z alike. Which z are members of θ he does not know, so
  none is chosen by it: about a keep fraction of them are. They have high ratios, which lowers the
  target's scores together.

Within one target the score only ever rises with ratio(x): the population does not order a
target's examples, it makes the scores of different targets comparable. The share has at most E
values and is the same (0, often) for many examples. Between equal shares ratio(x) decides, by a
part that is less than one step of the share: different shares are never reordered, and the lowest
false-positive rates are not left to one big tie.

Where nearly all confidences are near 1, nearly all ratios are too, and γ is above them: an example
then dominates only the few z that the target finds hard, whose number belongs to the target. Shares
compare badly between targets then, and pooled figures fall behind the mean over targets: on the
digits of the quick start the AUC is .525 pooled and .601 as a mean over targets.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_expit

from lira_jax import workers
from lira_jax.attacks.references import References, Side, base_and_dropped, map_chunks
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

# γ and a, as the authors' configuration has them for CIFAR-10.
GAMMA = 2.0
OFFLINE_A = 0.3

# Log-ratios are kept to so many decimals. Where models are equally certain, what is left is the
# rounding of sums, and leave-one-out adds up in another order for members than for non-members:
# of 64 models with constant scores that alone told members apart, with AUCs of .27 to .78.
DECIMALS = 12


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """Scores of `rmia-online` and `rmia-offline`, in [0, 1], higher = member.

    Where some example leaves a target without IN references, `rmia-offline` alone.
    """
    ratios = log_ratios(score_set, references, config, "rmia", progress)
    result = {f"rmia-{kind}": values for kind, values in ratios.items()}

    def compare(target: Float[np.ndarray, " E"]) -> None:
        target[:] = dominance(target)

    for log_ratio in result.values():
        workers.each(compare, log_ratio)
    return result


def log_ratios(
    score_set: ScoreSet,
    references: References,
    config: AttackConfig,
    description: str,
    progress: bool = False,
) -> dict[str, Float[np.ndarray, "N E"]]:
    """Log p(x|θ) − log p(x) of every target and example, to DECIMALS, `online` and `offline`.

    Where some example leaves a target without IN references, `offline` alone.

    Args:
        score_set: φ and masks.
        references: the rule.
        config: views to use.
        description, progress: of the progress bar.
    """
    models, examples, queries = score_set.scores.shape
    kinds = ("online", "offline") if references.count_in else ("offline",)
    result = {kind: np.empty((models, examples)) for kind in kinds}

    def ratios_of_chunk(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> None:
        log_p = _log_mean_exp(log_expit(scores))

        def log_mean(side: Side) -> Float[np.ndarray, "F C"]:
            used = base_and_dropped(references, score_set.keep, chunk, side)
            return log_mean_of_references(log_p, *used)

        log_out = log_mean("out")
        log_prior = {"offline": np.log(((1 + OFFLINE_A) * np.exp(log_out) + 1 - OFFLINE_A) / 2)}
        if references.count_in:
            log_prior["online"] = np.logaddexp(log_mean("in"), log_out) - np.log(2)
        targets = log_p.reshape(-1, references.fold, log_p.shape[1])  # [F, B, C]
        for kind, prior in log_prior.items():
            log_ratio = (targets - prior[:, np.newaxis]).reshape(models, -1)
            result[kind][:, chunk] = log_ratio.round(DECIMALS)

    used = config.queries or queries
    for _ in map_chunks(ratios_of_chunk, score_set.scores, used, description, progress):
        pass
    return result


def dominance(log_ratio: Float[np.ndarray, " E"]) -> Float[np.ndarray, " E"]:
    """The share of the other examples that each exceeds by γ or more, ties broken by the ratio.

    Args:
        log_ratio: log p(x|θ) − log p(x) of one target's examples.

    Returns:
        (k + s)/E, where k of the E − 1 other examples are exceeded and s in [0, 1] rises with the
        ratio.
    """
    # x is no z: it does not exceed itself by γ > 1.
    exceeded = np.searchsorted(np.sort(log_ratio), log_ratio - np.log(GAMMA), side="right")
    # Rises without saturating as a logistic function would, whose tail is 1 in float64.
    step = (1 + log_ratio / (1 + np.abs(log_ratio))) / 2
    return (exceeded + step) / log_ratio.size


def _log_mean_exp(log_p: Float[np.ndarray, "N C Q"]) -> Float[np.ndarray, "N C"]:
    """Log of the mean of p over views, whatever the size of p."""
    highest = log_p.max(axis=2)
    return highest + np.log(np.exp(log_p - highest[:, :, np.newaxis]).mean(axis=2))


def log_mean_of_references(
    log_p: Float[np.ndarray, "N C"],
    base: Int[np.ndarray, "R C"],
    dropped: Int[np.ndarray, "F D C"],
) -> Float[np.ndarray, "F C"]:
    """Log of the mean of p over the base less the dropped, for every fold at once.

    What a fold drops is one part of the base, of D models in a row. All parts but one are added up
    from both ends: taking that part off the whole would leave nothing of much smaller p.
    """
    size, left_out = base.shape[0], dropped.shape[1]
    parts = np.take_along_axis(log_p, base, axis=0).reshape(-1, left_out, base.shape[1])
    parts = np.logaddexp.reduce(parts, axis=1)
    none = np.full((1, base.shape[1]), -np.inf)
    before = np.logaddexp.accumulate(np.concatenate([none, parts[:-1]]))
    after = np.logaddexp.accumulate(np.concatenate([none, parts[:0:-1]]))[::-1]
    others = np.logaddexp(before, after)
    return np.take_along_axis(others, dropped[:, 0] // left_out, axis=0) - np.log(size - left_out)
