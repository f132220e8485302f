"""The null check: scores drawn without any leakage, with a run's own masks, through every attack.

Without leakage no attack can do better than chance, so one that does counts members in some other
way (docs/methods.md, 3: numbers of references that tell the answer, a target among its own
references, a fit on the target itself, …), and what it reports on the run is not to be trusted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit, logsumexp
from scipy.stats import t as student

from lira_jax.attacks import ATTACKS, Family, references
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

# Targets times examples of one draw, or all of a smaller run: more show smaller leaks.
ENTRIES = 48_000
DRAWS = 12
# Probability that a check of attacks which are all sound fails.
FALSE_ALARM = 0.01
# A share of entries is judged if it is at least so many of them.
LEAST = 5
VIEWS = 2
CLASSES = 3
NOISY_COPIES = 100
# Standard deviation of the models' general level of φ; examples differ by 3.
LEVELS = 0.5
SHARES = {"tpr_at_0.001": 1e-3, "tpr_at_0.01": 1e-2}


def null_check(
    score_set: ScoreSet,
    config: AttackConfig,
    attacks: Mapping[str, Family] = ATTACKS,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Is every attack at chance on scores that know nothing of the masks?

    Each draw takes a random subset of the examples, so that there are about ENTRIES targets times
    examples, keeps their masks under all models, and draws everything else (`draw`). The figures,
    over all targets pooled, with ties in random order:

    - auc; chance is ½.
    - tpr_at_0.001, tpr_at_0.01: the share of members above the threshold that 0.1 % or 1 % of all
      entries lie above. Chance is that same share exactly, however entries depend on each other;
      at a threshold put at the FPR it is not, as the first member above it belongs to none.

    Means over draws are compared with chance by Student's t from their spread over draws, on both
    sides, at FALSE_ALARM divided by the number of figures (Bonferroni).

    Args:
        score_set: its masks are checked; its scores are not looked at, but for the number of views.
        config: of the attacks; at most VIEWS views are drawn.
        attacks: families to check; all fields that they may need are drawn. Those that need
            references which some examples lack are passed over.
        draws: at least 2.
        seed: of the draws.

    Returns:
        ok: all are at chance; draws; examples, views: of each draw; critical_z: the largest |z| at
        chance; false_alarm; attacks, one entry each: name, ok, and by figure value, chance, error
        (standard error of the value), z, ok; None for a share of fewer than LEAST entries.

    Raises:
        InputError: as `references.find`.
    """
    rule = references.find(score_set, few=True)
    block = rule.fold if rule.order is None else None
    models, examples, queries = score_set.scores.shape
    if not rule.lacking:  # of fewer examples it might not be told that masks are independent
        examples = min(examples, max(1, round(ENTRIES / models)))
    views = min(config.queries or queries, VIEWS)
    config = dataclasses.replace(config, queries=views)
    drawn_rates: dict[str, list[dict[str, float]]] = {}
    for number in range(draws):
        rng = np.random.default_rng((seed, number))
        subset = np.sort(rng.permutation(score_set.keep.shape[1])[:examples])
        drawn = draw(score_set.keep[:, subset], block, views, rng)
        drawn_rule = references.find(drawn, few=True)
        for family in attacks.values():
            if any(side in rule.lacking for side in family.sides):
                continue
            for name, scores in family.attack(drawn, drawn_rule, config, False).items():
                drawn_rates.setdefault(name, []).append(_rates(scores, drawn.keep, rng))
    entries = models * examples
    chance = {"auc": 0.5} | {key: _top(entries, share) / entries for key, share in SHARES.items()}
    some_rates = next(iter(drawn_rates.values()))[0]
    chance = {key: value for key, value in chance.items() if key in some_rates}
    tests = len(drawn_rates) * len(chance)
    critical = float(student.isf(FALSE_ALARM / (2 * tests), draws - 1))
    judged = [_judged(name, rates, chance, critical) for name, rates in drawn_rates.items()]
    return {
        "ok": all(entry["ok"] for entry in judged),
        "draws": draws,
        "examples": examples,
        "views": views,
        "critical_z": critical,
        "false_alarm": FALSE_ALARM,
        "attacks": judged,
    }


def draw(
    keep: Bool[np.ndarray, "N E"], block: int | None, views: int, rng: np.random.Generator
) -> ScoreSet:
    """Scores of models that learnt nothing from their own examples in particular.

    φ has what real scores have: examples of unlike difficulty and spread, models that are more
    confident in general than others, views that share most of their noise. Levels rise along the
    file, in every draw alike, so that references chosen by their place show. Labels are drawn, and
    logits (of CLASSES), shares of noisy copies and gradient norms follow φ of the first view.
    """
    models, examples = keep.shape
    difficulty = np.asarray(2 + 3 * rng.normal(size=examples))
    spread = np.asarray(rng.gamma(2.0, size=examples))
    level = LEVELS * _trend(keep)[:, np.newaxis]
    common = 0.8 * rng.normal(size=keep.shape)[..., np.newaxis]
    noise = common + 0.6 * rng.normal(size=(models, examples, views))
    scores = (difficulty + level)[..., np.newaxis] + spread[:, np.newaxis] * noise
    scores = scores.astype(np.float32)
    phi = scores[:, :, 0].astype(np.float64)

    labels = np.asarray(rng.integers(CLASSES, size=examples))
    logits = rng.normal(size=(examples, CLASSES)) + rng.normal(size=(models, examples, CLASSES))
    column = np.arange(examples)
    logits[:, column, labels] = -np.inf
    logits[:, column, labels] = phi + logsumexp(logits, axis=-1)
    copies = rng.binomial(NOISY_COPIES, expit(noise[..., 0]))
    norm = np.exp(0.3 * rng.normal(size=keep.shape) - phi / 2)
    return ScoreSet(
        scores=scores,
        keep=keep,
        block=block,
        source="null check",
        labels=labels,
        logits=logits.astype(np.float32),
        merlin=copies / NOISY_COPIES,
        gradient_norm=norm.astype(np.float32),
    )


def _trend(keep: Bool[np.ndarray, "N E"]) -> Float[np.ndarray, " N"]:
    """A level per model that rises along the file, of mean 0 and variance 1.

    Masks by coin tosses give some models more members than others. Levels are made uncorrelated
    with that, by which alone members would score higher, or lower, in every draw.
    """
    level = np.arange(len(keep)) - (len(keep) - 1) / 2
    members = keep.sum(axis=1) - keep.sum() / len(keep)
    level -= members * (level @ members / max(members @ members, 1e-9))
    return level / max(level.std(), 1e-9)


def _rates(
    scores: Float[np.ndarray, "N E"], member: Bool[np.ndarray, "N E"], rng: np.random.Generator
) -> dict[str, float]:
    """AUC and, for SHARES that are at least LEAST entries, the share of members in that share."""
    shuffled = rng.permutation(scores.size)
    order = shuffled[np.argsort(scores.ravel()[shuffled], kind="stable")[::-1]]
    truth = member.ravel()[order]
    members = int(truth.sum())
    above = np.cumsum(truth)
    rates = {"auc": float(above[~truth].sum() / (members * (truth.size - members)))}
    for key, share in SHARES.items():
        if (top := _top(truth.size, share)) >= LEAST:
            rates[key] = float(above[top - 1] / members)
    return rates


def _top(entries: int, share: float) -> int:
    return round(share * entries)


def _judged(
    name: str, rates: list[dict[str, float]], chance: Mapping[str, float], critical: float
) -> dict[str, Any]:
    """One attack's part of the result."""
    result: dict[str, Any] = {"name": name, "ok": True, "auc": None, **dict.fromkeys(SHARES)}
    passed = True
    for key, expected in chance.items():
        each = np.array([of_draw[key] for of_draw in rates])
        value, error = float(each.mean()), float(each.std(ddof=1) / np.sqrt(each.size))
        away = value - expected
        z = away / error if error > 0 else (0.0 if away == 0 else None)
        ok = z is not None and abs(z) <= critical
        result[key] = {"value": value, "chance": expected, "error": error, "z": z, "ok": ok}
        passed &= ok
    return result | {"ok": passed}
