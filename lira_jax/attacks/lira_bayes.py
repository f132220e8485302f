"""`lira-bayes`: the target's score as one more draw under one law of all examples; the default.

The scores x are weighted means of φ over views (`view_weights.py`), less what each model gives in
general and to each class (`centring.py`); the law is that of `hierarchical.py`. With the references
of an example,

- `lira-bayes` is Λ = log p(x as one more IN score) − log p(x as one more OUT score);
- `lira-bayes-offline` is the same with the OUT references alone: the law tells what IN scores
  would be.

Neither has a setting, and at any number of models both take from the references what they tell,
and the rest from all other examples.

**Who the references are** (`references.py`): blocks are left out whole. Where masks form no blocks
but are drawn independently, all models but the target are references, as many as each example has
on a side: how many of the *other* models trained on it then tells nothing of the target. Where they
are not (exact halves, say), it would, and every example has equally many.

**Weights and law** of a target are fitted to models outside its part of the run, one of PARTS:
neither its own scores and mask, nor those of its block, have a part in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from lira_jax import workers
from lira_jax.attacks import centring, hierarchical, law_fit, view_weights
from lira_jax.attacks.cross_fit import groups_of
from lira_jax.attacks.hierarchical import Law, Mixture, Side
from lira_jax.attacks.references import References, base_and_dropped, map_chunks, moments
from lira_jax.attacks.thresholds import mean_score
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

NAMES = ("lira-bayes", "lira-bayes-offline")

# Parts of a run, each left out in turn; of MANY models, as few as there can be, since the rest is
# more than enough and each part has scores of its own where views have weights.
PARTS, FEWEST = 4, 2
MANY = 128
ELSEWHERE = -1
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
        x: scores of the run's models, [N, E]: of each part, by the weights of views that it has; or
            one for all parts, where there is one view.
        targets: of models from elsewhere, [T, E]; None without.
        keep: masks of the run's models.
        part: of each of the run's models; models from elsewhere are in none of these, ELSEWHERE.
        references: the rule.
        as_they_are: all models but the target are references, whatever their numbers.
        sample: examples that weights and laws are fitted to.
    """

    x: tuple[Float[np.ndarray, "N E"], ...]
    targets: Float[np.ndarray, "T E"] | None
    keep: Bool[np.ndarray, "N E"]
    part: Int[np.ndarray, " N"]
    references: References
    as_they_are: bool
    sample: Int[np.ndarray, " S"]

    def of(self, part: int) -> Float[np.ndarray, "N E"]:
        """Scores by which targets of that part are judged."""
        return self.x[part if len(self.x) > 1 else 0]

    def parts(self) -> list[int]:
        """All of them."""
        return sorted(set(self.part.tolist()))


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """Scores of `lira-bayes` and `lira-bayes-offline`, float64, higher = member.

    Raises:
        InputError: a target's references are all IN or all OUT, or no law found.
    """
    centred = prepare(score_set, references, config)
    laws = laws_of(centred, progress)
    result = {name: np.empty(centred.keep.shape) for name in NAMES}

    def score(
        model: int, chunk: slice, out: Side, inside: Side, x: Float[np.ndarray, " C"]
    ) -> None:
        for name, known in zip(NAMES, (inside, inside.none()), strict=True):
            result[name][model, chunk] = hierarchical.log_odds(laws[model], out, known, x)

    _of_targets_in_turn(centred, range(len(laws)), score, progress)
    return result


def prepare(score_set: ScoreSet, references: References, config: AttackConfig) -> Centred:
    """Centred scores of the run's models, each as target, and how references are counted.

    Args:
        score_set: of the run.
        references: the rule.
        config: views to use.
    """
    wanted = FEWEST if len(score_set.keep) >= MANY else PARTS
    part = np.zeros(len(score_set.keep), np.int64)
    for number, group in enumerate(groups_of(score_set, references, wanted)):
        part[group] = number
    return _prepare(score_set, references, config, part, sorted(set(part.tolist())), None)


def prepare_for_others(
    score_set: ScoreSet,
    references: References,
    config: AttackConfig,
    targets: Float[np.ndarray, "T E Q"] | None = None,
) -> Centred:
    """As `prepare`, for models from elsewhere, of which all of the run's are references.

    Args:
        score_set, references, config: as there.
        targets: φ of such models, on the run's examples and views.
    """
    part = np.zeros(len(score_set.keep), np.int64)
    return _prepare(score_set, references, config, part, [ELSEWHERE], targets)


def _prepare(
    score_set: ScoreSet,
    references: References,
    config: AttackConfig,
    part: Int[np.ndarray, " N"],
    targets_in: list[int],
    targets: Float[np.ndarray, "T E Q"] | None,
) -> Centred:
    scores, keep, labels = score_set.scores, score_set.keep, score_set.labels
    used = config.queries or scores.shape[2]
    x = mean_score(scores, used)
    order = np.argsort(x.mean(axis=0), kind="stable")
    if order.size > EXAMPLES:
        order = order[np.linspace(0, order.size - 1, EXAMPLES).round().astype(int)]
    as_they_are = references.order is not None and independent(keep)
    own = None
    if used == 1:
        if targets is not None:
            own = np.array(targets[..., 0], np.float64)
        centring.centre(x, labels, own)
        return Centred((x,), own, keep, part, references, as_they_are, order)
    views = np.array(scores[:, order, :used], np.float64)
    views -= x[:, order, np.newaxis]
    centring.centre(x, labels)
    views += x[:, order, np.newaxis]
    by_part = []
    for number in targets_in:
        outside = part != number
        weights = view_weights.find(views[outside], keep[np.ix_(outside, order)])
        x = mean_score(scores, used, weights)
        if targets is not None:
            own = np.asarray(targets[..., :used], np.float64) @ weights
        centring.centre(x, labels, own)
        by_part.append(x)
    return Centred(tuple(by_part), own, keep, part, references, as_they_are, order)


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


def sides(centred: Centred, part: int, chunk: slice | Int[np.ndarray, " C"]) -> tuple[Side, Side]:
    """OUT and IN references of every fold's targets on these examples, [F, C], by a part's x."""
    x, keep, rule = centred.of(part)[:, chunk], centred.keep[:, chunk], centred.references
    if centred.as_they_are:
        return _less_own(x, ~keep), _less_own(x, keep)
    if rule.order is not None:
        rule = replace(rule, order=rule.order[:, chunk])
    both = []
    for side in ("out", "in"):
        base, dropped = base_and_dropped(rule, keep, slice(None), side)
        if len(base) == dropped.shape[1]:  # no example has any to spare
            both.append(Side(0.0, *np.zeros((2, len(x) // rule.fold, x.shape[1]))))
            continue
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


def of_references(centred: Centred, part: int) -> tuple[Side, Side]:
    """OUT and IN scores of all models outside a part, on the examples of the sample, [S]."""
    index = np.ix_(centred.part != part, centred.sample)
    x, keep = centred.of(part)[index], centred.keep[index]
    return _whole(x, ~keep), _whole(x, keep)


def _whole(x: Float[np.ndarray, "N C"], side: Bool[np.ndarray, "N C"]) -> Side:
    count = side.sum(axis=0)
    mean = np.where(side, x, 0).sum(axis=0) / np.maximum(count, 1)
    squares = np.square(np.where(side, x - mean, 0)).sum(axis=0)
    return Side(count.astype(np.float64), mean, squares)


def laws_of(centred: Centred, progress: bool) -> list[Law]:
    """The law of every target."""
    parts = centred.parts()
    laws: dict[int, Law] = {}

    def fit(part: int) -> None:
        laws[part] = law_fit.fit(*of_references(centred, part))

    workers.each(fit, parts, None, "lira-bayes: laws", progress)
    return [laws[part] for part in centred.part.tolist()]


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

    def predict(
        model: int, chunk: slice, out: Side, inside: Side, x: Float[np.ndarray, " C"]
    ) -> None:
        visit(model, chunk, *hierarchical.predict(laws[model], out, inside), x)

    _of_targets_in_turn(centred, range(len(laws)) if models is None else models, predict, progress)


def _of_targets_in_turn(
    centred: Centred,
    models: Iterable[int],
    visit: Callable[[int, slice, Side, Side, Float[np.ndarray, " C"]], None],
    progress: bool,
) -> None:
    """Hand on the references of every target and its scores, chunk by chunk."""
    chosen = list(models)

    for part in centred.parts():
        targets = [model for model in chosen if centred.part[model] == part]

        def visit_chunk(
            chunk: slice, x: Float[np.ndarray, "N C 1"], part: int = part,
            targets: list[int] = targets,
        ) -> None:  # fmt: skip
            out, inside = sides(centred, part, chunk)
            for model in targets:
                fold = model // centred.references.fold
                visit(model, chunk, _of_fold(out, fold), _of_fold(inside, fold), x[model, :, 0])

        if targets:
            x = centred.of(part)[..., np.newaxis]
            for _ in map_chunks(visit_chunk, x, 1, "lira-bayes", progress):
                pass


def log_tails(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> Float[np.ndarray, "N E"]:
    """Log Pr of as high a score, were the target OUT, of each of the run's models as target.

    Args, Raises: as for `attack`.
    """
    centred = prepare(score_set, references, config)
    result = np.empty(centred.keep.shape)

    def visit(
        model: int, chunk: slice, of_out: Mixture, _: Mixture, x: Float[np.ndarray, " C"]
    ) -> None:
        result[model, chunk] = of_out.log_tail(x)

    of_run(centred, laws_of(centred, progress), visit, progress=progress)
    return result


def of_another(
    score_set: ScoreSet, references: References, config: AttackConfig
) -> tuple[Mixture, Mixture]:
    """The laws of one more OUT and one more IN score, given all the run's models, [K, E].

    Args, Raises: as for `attack`.
    """
    centred = prepare_for_others(score_set, references, config)
    law = law_fit.fit(*of_references(centred, ELSEWHERE))
    return hierarchical.predict(law, *_all_sides(centred))


def _all_sides(centred: Centred) -> tuple[Side, Side]:
    return _whole(centred.x[0], ~centred.keep), _whole(centred.x[0], centred.keep)


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
    centred = prepare_for_others(score_set, references, config, targets)
    assert centred.targets is not None
    x, law = centred.targets, law_fit.fit(*of_references(centred, ELSEWHERE))
    out, inside = _all_sides(centred)
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
