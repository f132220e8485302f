"""A lower bound on ε: no (ε, δ)-differentially private training could give these scores.

The multiplicity corrections are those of `jax_privacy.auditing` (the extra `audit`;
docs/methods.md, 3.13). This is the one module of the attack stage that imports JAX, and only when
it is called.

**What the bound is about.** The training algorithm, at the level of one example: adding an example
to the data of one model (with masks in blocks, whose models all have equally many examples:
exchanging it for another) changes the odds of what the model does by at most e^ε, but for δ. It is
one-sided: ε is at least so much with the stated confidence, and may be any amount larger. An
attack that finds little gives a bound of 0, whatever the true ε.

**Which scores may be counted.** Decisions on one example by different targets share references, and
decisions of one target on different examples share a model: they are not independent trials, and an
interval for a binomial share over all of them claims a confidence it has not. So each example is
used once, under one target drawn at random. Then

- the other targets' memberships of that example, which the attack used, are given, and the one
  that is guessed is a fair coin (where the share of members is not ½, entries of the larger side
  are dropped at random until it is);
- to a training algorithm that is (ε, δ)-private in one example, each coin stays hidden up to e^ε
  given all models and all other coins. That is all that auditing in one run asks (Steinke, Nasr and
  Jagielski, arXiv 2305.08846, theorem 3.1): the number of right guesses is then bounded as a sum of
  independent ones is, however the guesses depend on each other through shared models.

`epsilon` is that bound. `clopper_pearson` (Nasr et al., arXiv 2101.04535) on the same entries
stands beside it as the customary figure. It takes their decisions as independent trials, which
nothing guarantees where examples share models, and is mostly larger: the bound that needs no such
assumption has to allow for one failure of probability δ that gives all canaries away at once. Both
choose the threshold on one half of the canaries and are computed on the other (`auditing.Split`):
Bonferroni's correction over thresholds costs the bound of one run more, all of it where the
corrected significance falls below what δ times the number of canaries allows for (2,500 canaries at
δ = 1e-5, for one). Bonferroni's correction is over the attacks among which the strongest was
picked. The draw of targets and halves is repeated, and the bound is the median over draws at half
the significance, which is as valid (Meinshausen, Meier and Bühlmann, arXiv 0811.2177, theorem 3.1)
and depends less on luck.

**What remains approximate.** Masks in blocks hold exactly half of the examples, so coins of one
model are not quite independent; with 1/N of them used per model they nearly are. The other models
of a target's block share its coins, and reach other entries as references. Attacks with statistics
over all examples (`-global`, RMIA, learned ones) use coins of other entries in passing;
`lira-online` reads one example's column, but for a floor under σ.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

MISSING = "jax-privacy is not installed; pip install 'lira_jax[audit]'"
# Draws of one target per example, of which the median counts.
DRAWS = 15
METHOD = (
    "one target per example; auditing in one run (arXiv 2305.08846), the threshold chosen on half "
    "of the points, Bonferroni over attacks where one is chosen, median over draws"
)


def lower_bound(
    scores: Float[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    *,
    delta: float = 1e-5,
    significance: float = 0.05,
    candidates: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """The largest ε that the scores refute, with a confidence of 1 − significance.

    Args:
        scores: of one attack, higher = member, one row per target.
        member: what is true.
        delta: δ, in (0, 1): the share of cases in which privacy may fail outright.
        significance: probability that the bound is wrong, below ½.
        candidates: attacks among which this one was chosen by its results on the same scores; 1 if
            it was named beforehand. Significance is divided by it.
        seed: of the draws.

    Returns:
        epsilon and clopper_pearson, the bounds, or None where jax-privacy is not installed (then
        `reason` says so, else it is None); ceiling: the bound had every guess been right, the most
        that so few canaries can show; delta; confidence; canaries: entries that a draw uses, on
        average; candidates; method.

    Raises:
        ValueError: delta, significance or candidates outside their range; members or non-members
            missing.
    """
    if not 0 < delta < 1 or not 0 < significance < 0.5 or candidates < 1:
        raise ValueError(f"delta {delta}, significance {significance}, candidates {candidates}")
    if member.all() or not member.any():
        raise ValueError("a bound on ε needs members and non-members")
    result: dict[str, Any] = {
        "epsilon": None,
        "clopper_pearson": None,
        "ceiling": None,
        "delta": delta,
        "confidence": 1 - significance,
        "canaries": 0,
        "candidates": candidates,
        "method": METHOD,
        "reason": None,
    }
    try:
        auditing = importlib.import_module("jax_privacy.auditing")
    except ImportError:
        return result | {"reason": MISSING}
    rng = np.random.default_rng(seed)
    level = significance / (2 * candidates)
    bounds = []
    for number in range(DRAWS):
        values, truth = _draw(scores, member, rng)
        inside, outside = _ranks(values[truth], values[~truth])
        if min(inside.size, outside.size) < 2:  # nothing to choose a threshold on
            bounds.append((0.0, 0.0, 0.0, truth.size))
            continue
        halves = auditing.Split(seed=number)
        auditor = auditing.CanaryScoreAuditor(inside, outside)
        best = auditing.CanaryScoreAuditor(np.ones(inside.size), np.zeros(outside.size))
        bounds.append(
            (
                float(auditor.epsilon_one_run(level, delta, threshold_strategy=halves)),
                float(auditor.epsilon_clopper_pearson(level, delta, threshold_strategy=halves)),
                float(best.epsilon_one_run(level, delta, threshold_strategy=halves)),
                truth.size,
            )
        )
    epsilon, clopper_pearson, ceiling, _ = np.median(bounds, axis=0)
    return result | {
        "epsilon": float(epsilon),
        "clopper_pearson": float(clopper_pearson),
        "ceiling": float(ceiling),
        "canaries": round(float(np.mean([bound[3] for bound in bounds]))),
    }


def _draw(
    scores: Float[np.ndarray, "T E"], member: Bool[np.ndarray, "T E"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, " C"], Bool[np.ndarray, " C"]]:
    """Scores and truth of one target per example, fair coins."""
    examples = np.arange(scores.shape[1])
    target = rng.integers(scores.shape[0], size=examples.size)
    truth = member[target, examples]
    share = member.mean()
    chance = np.where(truth, min(1, (1 - share) / share), min(1, share / (1 - share)))
    kept = rng.random(examples.size) < chance
    return scores[target, examples][kept], truth[kept]


def _ranks(
    inside: Float[np.ndarray, " I"], outside: Float[np.ndarray, " O"]
) -> tuple[Float[np.ndarray, " I"], Float[np.ndarray, " O"]]:
    """Both by their place among all distinct scores: no bound depends on more."""
    _, place = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    ranks = place.astype(np.float64)
    return ranks[: inside.size], ranks[inside.size :]
