"""`lira-bayes`: the target's score as one more draw under one law of all examples; the default.

The scores x are means of φ over views, less what each model gives in general and to each class
(`centring.py`); the law is that of `hierarchical.py`. With the references of an example,

- `lira-bayes` is Λ = log p(x as one more IN score) − log p(x as one more OUT score);
- `lira-bayes-offline` is the same with the OUT references alone: the law tells what IN scores
  would be.

Neither has a setting, and at any number of models both take from the references what they tell,
and the rest from all other examples.

**Who the references are** (`references.py`): blocks are left out whole. Where masks form no blocks
but are drawn independently, all models but the target are references, as many as each example has
on a side: how many of the *other* models trained on it then tells nothing of the target. Where they
are not (exact halves, say), it would, and every example has equally many.

**Which law** a target gets is fitted to models outside its part of the run, one of LAWS. Up to FEW
references on a side, every target has a law of its own, in which its own scores have a part, their
side unknown, as a real attacker has them. No mask of the target, nor the scores or
masks of its block, have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from lira_jax import workers
from lira_jax.attacks import centring, hierarchical
from lira_jax.attacks.cross_fit import groups_of
from lira_jax.attacks.hierarchical import Law, Mixture, Side
from lira_jax.attacks.references import References, base_and_dropped, map_chunks, moments
from lira_jax.attacks.thresholds import mean_score
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

NAMES = ("lira-bayes", "lira-bayes-offline")

# Laws of a run; more models than the one part that is left out would hardly change them.
LAWS = 4
# References of a side up to which targets have laws of their own.
FEW = 3
# Examples that a law is fitted to, evenly spaced by their mean score.
EXAMPLES = 2_000
# Masks count as independent where the spread of examples' counts is within so many standard errors
# of what it then is; and so many examples that these are at most a sixth of it. With fewer, masks
# that are not could pass, and every example has equally many references.
ERRORS = 3.0
MOST = 1 / 6


@dataclass(frozen=True)
class Centred:
    """What the attack is made of.

    Attributes:
        x: scores of the run's models, [N, E].
        targets: of models from elsewhere, [T, E]; None without.
        keep: masks of the run's models.
        references: the rule.
        as_they_are: all models but the target are references, whatever their numbers.
        sample: examples that laws are fitted to.
    """

    x: Float[np.ndarray, "N E"]
    targets: Float[np.ndarray, "T E"] | None
    keep: Bool[np.ndarray, "N E"]
    references: References
    as_they_are: bool
    sample: Int[np.ndarray, " S"]


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """Scores of `lira-bayes` and `lira-bayes-offline`, float64, higher = member.

    Raises:
        InputError: no example with references on both sides, or no law found.
    """
    centred = prepare(score_set, references, config)
    models, examples = centred.x.shape
    laws = laws_of(score_set, centred, progress)
    result = {name: np.empty((models, examples)) for name in NAMES}

    def score_chunk(chunk: slice, x: Float[np.ndarray, "N C 1"]) -> None:
        out, inside = sides(centred, chunk)
        for model in range(models):
            fold = model // references.fold
            own, others = _of_fold(out, fold), _of_fold(inside, fold)
            for name, known in zip(NAMES, (others, others.none()), strict=True):
                result[name][model, chunk] = hierarchical.log_odds(
                    laws[model], own, known, x[model, :, 0]
                )

    for _ in map_chunks(score_chunk, centred.x[..., np.newaxis], 1, "lira-bayes", progress):
        pass
    return result


def prepare(
    score_set: ScoreSet,
    references: References,
    config: AttackConfig,
    targets: Float[np.ndarray, "T E Q"] | None = None,
) -> Centred:
    """Centred scores, and how references are counted.

    Args:
        score_set: of the run.
        references: the rule.
        config: views to use.
        targets: φ of models from elsewhere, on the run's examples and views.
    """
    x = mean_score(score_set.scores, config.queries)
    own = None
    if targets is not None:
        used = config.queries or score_set.scores.shape[2]
        own = np.asarray(targets[..., :used], np.float64).mean(axis=2)
    centring.centre(x, score_set.labels, own)
    order = np.argsort(x.mean(axis=0), kind="stable")
    if order.size > EXAMPLES:
        order = order[np.linspace(0, order.size - 1, EXAMPLES).round().astype(int)]
    as_they_are = references.order is not None and independent(score_set.keep)
    return Centred(x, own, score_set.keep, references, as_they_are, order)


def independent(keep: Bool[np.ndarray, "N E"]) -> bool:
    """Do examples' numbers of IN models spread as they do where every mask is drawn by itself?

    Then those of all other models tell nothing about the target's.
    """
    share = keep.mean(axis=1)
    expected = float((share * (1 - share)).sum())
    examples = keep.shape[1]
    spread = float(keep.sum(axis=0).var(ddof=1))
    away = ERRORS * np.sqrt(2 / (examples - 1))
    return bool(away <= MOST and abs(spread / max(expected, 1e-9) - 1) <= away)


def sides(centred: Centred, chunk: slice | Int[np.ndarray, " C"]) -> tuple[Side, Side]:
    """OUT and IN references of every fold's targets on these examples, [F, C]."""
    x, keep, rule = centred.x[:, chunk], centred.keep[:, chunk], centred.references
    if centred.as_they_are:
        return _less_own(x, ~keep), _less_own(x, keep)
    if rule.order is not None:
        rule = replace(rule, order=rule.order[:, chunk])
    both = []
    for side in ("out", "in"):
        base, dropped = base_and_dropped(rule, keep, slice(None), side)
        found = moments(x[..., np.newaxis], base, dropped)
        both.append(Side(float(found.count), found.mean[..., 0], found.squares[..., 0]))
    return both[0], both[1]


def _less_own(x: Float[np.ndarray, "N C"], side: Bool[np.ndarray, "N C"]) -> Side:
    """A side's statistics over all models but each in turn."""
    total = side.sum(axis=0)
    mean = np.where(side, x, 0).sum(axis=0) / np.maximum(total, 1)
    from_mean = np.where(side, x - mean, 0)
    squares = np.square(from_mean).sum(axis=0)
    count = total - side
    least = np.maximum(count, 1)
    own_mean = mean - from_mean / least
    own_squares = squares - np.square(from_mean) * (total / least)
    cancelled = (own_squares < 1e-6 * squares) & (count > 1)
    for model, example in np.argwhere(cancelled):
        others = side[:, example].copy()
        others[model] = False
        values = x[others, example]
        own_mean[model, example] = values.mean()
        own_squares[model, example] = np.square(values - values.mean()).sum()
    return Side(
        count.astype(np.float64), np.where(count > 0, own_mean, 0.0),
        np.where(count > 1, np.maximum(own_squares, 0.0), 0.0),
    )  # fmt: skip


def _of_fold(side: Side, fold: int) -> Side:
    count = side.count[fold] if isinstance(side.count, np.ndarray) else side.count
    return Side(count, side.mean[fold], side.squares[fold])


def of_models(centred: Centred, models: Bool[np.ndarray, " N"]) -> tuple[Side, Side]:
    """OUT and IN scores of the chosen models, all of them, on the examples of the sample, [S]."""
    x, keep = (array[np.ix_(models, centred.sample)] for array in (centred.x, centred.keep))
    return _whole(x, ~keep), _whole(x, keep)


def _whole(x: Float[np.ndarray, "N C"], side: Bool[np.ndarray, "N C"]) -> Side:
    count = side.sum(axis=0)
    mean = np.where(side, x, 0).sum(axis=0) / np.maximum(count, 1)
    squares = np.square(np.where(side, x - mean, 0)).sum(axis=0)
    return Side(count.astype(np.float64), mean, squares)


def laws_of(score_set: ScoreSet, centred: Centred, progress: bool) -> list[Law]:
    """The law of every target."""
    rule, models = centred.references, len(centred.x)
    laws: list[Law | None] = [None] * models
    if min(rule.count_in, rule.count_out) <= FEW:
        out, inside = sides(centred, centred.sample)

        def of_fold(fold: int) -> None:
            both = _of_fold(out, fold), _of_fold(inside, fold)
            law = hierarchical.fit(*both)
            for model in range(fold * rule.fold, (fold + 1) * rule.fold):
                own = centred.x[model, centred.sample]
                laws[model] = hierarchical.with_target(law, *both, own)

        folds = range(models // rule.fold)
        workers.each(of_fold, folds, None, "lira-bayes: laws", progress)
    else:

        def of_part(part: Bool[np.ndarray, " N"]) -> None:
            law = hierarchical.fit(*of_models(centred, ~part))
            for model in np.flatnonzero(part):
                laws[model] = law

        parts = groups_of(score_set, rule, LAWS)
        workers.each(of_part, parts, None, "lira-bayes: laws", progress)
    return [law for law in laws if law is not None]


Visit = Callable[[int, slice, Mixture, Mixture, Float[np.ndarray, " C"]], None]


def of_run(
    centred: Centred,
    laws: list[Law],
    visit: Visit,
    models: Iterable[int] | None = None,
    progress: bool = False,
) -> None:
    """Hand on what references say of every example, for each of the run's models as target.

    Args:
        centred, laws: from `prepare` and `laws_of`; the references are those of `attack`.
        visit: called from several threads with the model, the chunk of examples, the laws of one
            more OUT and one more IN score of each, and the model's centred scores.
        models: the targets; None for all.
        progress: show a progress bar, if standard error is a terminal.
    """
    targets = range(len(laws)) if models is None else list(models)

    def visit_chunk(chunk: slice, x: Float[np.ndarray, "N C 1"]) -> None:
        out, inside = sides(centred, chunk)
        for model in targets:
            fold = model // centred.references.fold
            of_out, of_in = hierarchical.predict(
                laws[model], _of_fold(out, fold), _of_fold(inside, fold)
            )
            visit(model, chunk, of_out, of_in, x[model, :, 0])

    for _ in map_chunks(visit_chunk, centred.x[..., np.newaxis], 1, "lira-bayes", progress):
        pass


def log_tails(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> Float[np.ndarray, "N E"]:
    """Log Pr of as high a score, were the target OUT, of each of the run's models as target.

    Args, Raises: as for `attack`.
    """
    centred = prepare(score_set, references, config)
    result = np.empty(centred.x.shape)

    def visit(
        model: int, chunk: slice, of_out: Mixture, _: Mixture, x: Float[np.ndarray, " C"]
    ) -> None:
        result[model, chunk] = of_out.log_tail(x)

    of_run(centred, laws_of(score_set, centred, progress), visit, progress=progress)
    return result


def of_another(centred: Centred) -> tuple[Mixture, Mixture]:
    """The laws of one more OUT and one more IN score, given all the run's models, [K, E].

    Raises:
        InputError: no law found.
    """
    law = hierarchical.fit(*of_models(centred, np.ones(len(centred.x), bool)))
    return hierarchical.predict(
        law, _whole(centred.x, ~centred.keep), _whole(centred.x, centred.keep)
    )


@dataclass(frozen=True)
class OfTarget:
    """What the run's models say of models from elsewhere.

    Attributes:
        log_odds: `lira-bayes`, [T, E].
        offline: `lira-bayes-offline`, [T, E].
        log_tail: log Pr of as high a score, were the target OUT, [T, E].
        law: of all examples.
        of_out, of_in: the laws of one more score of each example.
        x: the targets' centred scores.
    """

    log_odds: Float[np.ndarray, "T E"]
    offline: Float[np.ndarray, "T E"]
    log_tail: Float[np.ndarray, "T E"]
    law: Law
    of_out: Mixture
    of_in: Mixture
    x: Float[np.ndarray, "T E"]


def of_targets(
    score_set: ScoreSet,
    references: References,
    config: AttackConfig,
    targets: Float[np.ndarray, "T E Q"],
) -> OfTarget:
    """Models from elsewhere, with all of the run's models as references.

    Args, Raises: as for `prepare` and `attack`.
    """
    centred = prepare(score_set, references, config, targets)
    assert centred.targets is not None
    x, every = centred.targets, np.ones(len(centred.x), bool)
    few = min(references.base_in, references.base_out) <= FEW
    both = of_models(centred, every)
    law = hierarchical.fit(*both)
    if few and len(x) == 1:
        law = hierarchical.with_target(law, *both, x[0, centred.sample])
    out, inside = (_whole(centred.x, side) for side in (~centred.keep, centred.keep))
    of_out, of_in = hierarchical.predict(law, out, inside)
    return OfTarget(
        log_odds=of_in.log_density(x) - of_out.log_density(x),
        offline=hierarchical.log_odds(law, out, inside.none(), x),
        log_tail=of_out.log_tail(x),
        law=law,
        of_out=of_out,
        of_in=of_in,
        x=x,
    )
