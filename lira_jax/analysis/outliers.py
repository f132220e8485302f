"""Absurd scores: found without a look at the masks, kept from doing harm, counted and named.

One score of 1e6 among 100,000 spoils every mean and variance that it is in, and through a σ or a
floor that examples share it spoils an attack on all of them (docs/methods.md, 3.16). Of an
example's scores φ under a view, over all models, c is the median, and m the median of |φ − c| in
units of a Gaussian's σ. Over examples, M is the median of c, S how far the farther ones' c are from
it, and s the spread m of the noisier ones, or LEAST if that is more. Then, per view:

- a *score* is absurd where |φ − c| > FAR · max(m, s). It is put at NEAR · max(m, s), where the
  farthest honest ones are, on its side: a leak that shows in such scores still shows;
- an *example* is where |c − M| > FAR · max(S, s), or m > FAR · s. All its scores are moved, and
  drawn together, by what brings c to NEAR · max(S, s) and m to NEAR · s: how they stand to each
  other stays, and so does what the example gives away;
- a *model* is where more than SHARE of its scores are. It is left out, with the models that are
  left out with it as references, unless too few would remain.

Nothing of this knows masks, or which model is a target: where scores do not depend on masks,
neither does what becomes of them. Medians bear up to half of the models; with two, nothing can be
told. Where nothing is absurd, attacks see the very arrays that were given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import norm

from lira_jax.attacks import references
from lira_jax.attacks.references import References, map_chunks
from lira_jax.errors import InputError
from lira_jax.score_set import ScoreSet

# How many times the usual spread is absurd, and how many become of it. Honest runs reach 7.
FAR, NEAR = 50.0, 10.0
# S and s are of this quantile over examples: most of them may be saturated, with hardly a spread.
NOISIER = 0.9
SHARE = 0.5
# In units of φ. Where models are so sure that most scores hardly vary, the few that do may be the
# leak itself.
LEAST = 1.0
# Scores, and examples, that are named; all are counted.
NAMED = 5


@dataclass(frozen=True)
class Outliers:
    """What is absurd under the first Q views.

    Attributes:
        model: which models are, bool [N].
        example: which examples are, bool [E].
        count: how many scores of the other models are.
        farthest: NAMED of these at most, the farthest first: model, example, view, int [L, 3].
        centre: c, [E, Q].
        spread: m, [E, Q].
        usual: s, [Q].
        middle: M, [Q].
        reach: max(S, s), [Q].
    """

    model: Bool[np.ndarray, " N"]
    example: Bool[np.ndarray, " E"]
    count: int
    farthest: Int[np.ndarray, "L 3"]
    centre: Float[np.ndarray, "E Q"]
    spread: Float[np.ndarray, "E Q"]
    usual: Float[np.ndarray, " Q"]
    middle: Float[np.ndarray, " Q"]
    reach: Float[np.ndarray, " Q"]

    def __bool__(self) -> bool:
        """Is anything absurd?"""
        return bool(self.count or self.model.any() or self.example.any())

    @property
    def unit(self) -> Float[np.ndarray, "E Q"]:
        """max(m, s)."""
        return np.asarray(np.maximum(self.spread, self.usual))

    @property
    def of_examples(self) -> Float[np.ndarray, " E"]:
        """How far out every example is, in units of what is usual."""
        away = np.abs(self.centre - self.middle) / self.reach
        return np.asarray(np.maximum(away, self.spread / self.usual).max(axis=1))


def find(score_set: ScoreSet, queries: int = 0) -> Outliers:
    """Look for absurd scores, models and examples.

    Args:
        score_set: φ, which may be a memory map. Masks are not looked at.
        queries: views to look at, the first so many; 0: all.
    """
    scores = score_set.scores
    models, examples, views = scores.shape
    queries = queries or views
    centre, spread, farthest = np.empty((3, examples, queries))

    def describe(chunk: slice, values: Float[np.ndarray, "N C Q"]) -> None:
        centre[chunk] = np.median(values, axis=0)
        away = np.abs(values - centre[chunk])
        spread[chunk] = np.median(away, axis=0) / norm.ppf(0.75)
        farthest[chunk] = away.max(axis=0)

    for _ in map_chunks(describe, scores, queries):
        pass
    usual = np.maximum(np.quantile(spread, NOISIER, axis=0), LEAST)
    middle = np.median(centre, axis=0)
    reach = np.quantile(np.abs(centre - middle), NOISIER, axis=0) / norm.ppf((1 + NOISIER) / 2)
    found = Outliers(
        model=np.zeros(models, bool),
        example=np.zeros(examples, bool),
        count=0,
        farthest=np.empty((0, 3), np.int64),
        centre=centre,
        spread=spread,
        usual=usual,
        middle=middle,
        reach=np.maximum(reach, usual),
    )
    found = dataclasses.replace(found, example=found.of_examples > FAR)
    return _with_scores(found, scores) if (farthest > FAR * found.unit).any() else found


def _with_scores(found: Outliers, scores: Float[np.ndarray, "N E Q"]) -> Outliers:
    """With models and scores, which takes two more passes over the scores."""
    queries, unit = found.usual.size, found.unit

    def distance(chunk: slice, values: Float[np.ndarray, "N C Q"]) -> Float[np.ndarray, "N C Q"]:
        return np.asarray(np.abs(values - found.centre[chunk]) / unit[chunk])

    def count(chunk: slice, values: Float[np.ndarray, "N C Q"]) -> Int[np.ndarray, " N"]:
        return np.asarray((distance(chunk, values) > FAR).sum(axis=(1, 2)))

    counts = np.sum(list(map_chunks(count, scores, queries)), axis=0)
    model = counts > SHARE * found.centre.size

    def farthest(chunk: slice, values: Float[np.ndarray, "N C Q"]) -> list[tuple[float, ...]]:
        far = np.where(model[:, np.newaxis, np.newaxis], 0.0, distance(chunk, values))
        first = np.argsort(-far, axis=None, kind="stable")[:NAMED]
        places = zip(*(place.tolist() for place in np.unravel_index(first, far.shape)), strict=True)
        return [(-far[n, e, q], n, chunk.start + e, q) for n, e, q in places if far[n, e, q] > FAR]

    named = sorted(place for chunk in map_chunks(farthest, scores, queries) for place in chunk)
    return dataclasses.replace(
        found,
        model=model,
        count=int(counts[~model].sum()),
        farthest=np.array([place[1:] for place in named[:NAMED]], np.int64).reshape(-1, 3),
    )


def kept_models(score_set: ScoreSet, rule: References, found: Outliers) -> Bool[np.ndarray, " N"]:
    """The models to attack: all but the absurd ones and those that share a fold with them.

    All, where masks would leave the others without references.

    Args:
        score_set: its masks.
        rule: by which targets get their references.
        found: from `find`.
    """
    kept = np.repeat(~found.model.reshape(-1, rule.fold).any(axis=1), rule.fold)
    if not kept.all():
        try:
            references.find(of_models(score_set, kept), few=bool(rule.lacking))
        except InputError:
            kept[:] = True
    return kept


def of_models(score_set: ScoreSet, kept: Bool[np.ndarray, " N"]) -> ScoreSet:
    """The models kept alone; copies, unless these are all."""
    if kept.all():
        return score_set
    names = ("scores", "keep", "logits", "merlin", "gradient_norm")
    arrays = {name: getattr(score_set, name) for name in names}
    chosen = {name: array[kept] for name, array in arrays.items() if array is not None}
    return dataclasses.replace(score_set, **chosen)


def as_attacked(score_set: ScoreSet, found: Outliers, kept: Bool[np.ndarray, " N"]) -> ScoreSet:
    """The scores that attacks are to see: bounded, and of the models kept alone.

    Args:
        score_set: the scores as given.
        found: from `find`.
        kept: from `kept_models`.

    Returns:
        The same object where nothing is absurd; else copies in memory.
    """
    if not found:
        return score_set
    scores = bounded(score_set.scores, found)
    scores.flags.writeable = False
    return of_models(dataclasses.replace(score_set, scores=scores), kept)


def bounded(scores: Float[np.ndarray, "M E Q"], found: Outliers) -> Float[np.ndarray, "M E Q"]:
    """A copy of any models' scores on the same examples and views, with absurd ones drawn in."""
    unit, queries = found.unit, found.usual.size
    result = np.array(scores)
    centre = found.middle + _drawn_in(found.centre - found.middle, found.reach)
    spread = _drawn_in(found.spread, np.broadcast_to(found.usual, unit.shape))
    narrower = np.divide(spread, found.spread, out=np.ones(unit.shape), where=found.spread > 0)

    def bound(chunk: slice, values: Float[np.ndarray, "M C Q"]) -> None:
        away = values - found.centre[chunk]
        absurd = (np.abs(away) > FAR * unit[chunk]) | found.example[chunk, np.newaxis]
        away = narrower[chunk] * _drawn_in(away, unit[chunk])
        part = result[:, chunk, :queries]
        part[absurd] = (centre[chunk] + away)[absurd]

    for _ in map_chunks(bound, scores, queries):
        pass
    return result


def _drawn_in(
    away: Float[np.ndarray, "*S"], unit: Float[np.ndarray, "*#S"]
) -> Float[np.ndarray, "*S"]:
    """Distances with their signs; those beyond FAR units are NEAR units."""
    absurd = np.abs(away) > FAR * unit
    return np.where(absurd, np.sign(away) * NEAR * unit, away)


def as_json(
    score_set: ScoreSet,
    found: Outliers,
    kept: Bool[np.ndarray, " N"] | None,
) -> dict[str, Any]:
    """What `metrics.json` says of what is absurd.

    Args:
        score_set: the scores as given.
        found: from `find`.
        kept: from `kept_models`; None where nothing was done about what was found.
    """
    unit, queries = found.unit, found.usual.size

    def out(scores: np.ndarray, place: Any) -> Any:
        return np.abs(scores.astype(np.float64) - found.centre[place]) / unit[place]

    far, examples = found.of_examples, np.flatnonzero(found.example)
    examples = examples[np.argsort(-far[examples], kind="stable")]
    return {
        "far": FAR,
        "taken_as_they_are": kept is None,
        "scores": {
            "count": found.count,
            "of": found.model.size * found.centre.size,
            "farthest": [
                {
                    "model": n, "example": e, "view": q,
                    "score": float(score_set.scores[n, e, q]),
                    "distance": float(out(score_set.scores[n, e, q], (e, q))),
                }
                for n, e, q in found.farthest.tolist()
            ],
        },
        "models": [
            {"model": n, "distance": float(np.median(out(score_set.scores[n, :, :queries], ...)))}
            for n in np.flatnonzero(found.model).tolist()
        ],
        "left_out": [] if kept is None else np.flatnonzero(~kept).tolist(),
        "examples": {
            "count": int(examples.size),
            "farthest": [
                {"example": e, "distance": float(far[e])} for e in examples[:NAMED].tolist()
            ],
        },
    }  # fmt: skip


def in_words(told: Mapping[str, Any] | None) -> list[str]:
    """What is absurd and what to do about it, a sentence or two on each kind; empty if nothing is.

    Args:
        told: from `as_json`.
    """
    if told is None:
        return []
    as_they_are = told["taken_as_they_are"]
    kinds = (_models(told), _scores(told), _examples(told))
    words = [text for text in kinds if text]
    if words and as_they_are:
        words.append("This protocol takes them as they are: its figures are not to be relied on.")
    return words


def _models(told: Mapping[str, Any]) -> str:
    if not told["models"]:
        return ""
    numbers = [one["model"] for one in told["models"]]
    least = min(one["distance"] for one in told["models"])
    many = len(numbers) > 1
    text = (
        f"The scores of {_models_named(numbers)} are absurd: typically {_times(least)} times the "
        f"usual spread{' or more' * many} away from other models'."
    )
    fellows = sorted(set(told["left_out"]) - set(numbers))
    if told["left_out"]:
        text += f" {'They are' if many else 'It is'} left out of all attacks"
        text += f", with {_models_named(fellows)} of the same block." if fellows else "."
    elif not told["taken_as_they_are"]:
        text += " Too few would remain without: no figure of this run is to be relied on."
    return f"{text} Train or score {'them' if many else 'it'} again."


def _scores(told: Mapping[str, Any]) -> str:
    count = told["scores"]["count"]
    if not count:
        return ""
    named = [
        f"{one['score']:.3g} of model {one['model']} on example {one['example']}"
        + (f", view {one['view']}" if one["view"] else "")
        for one in told["scores"]["farthest"]
    ]
    many = count > 1
    text = (
        f"{count:,} of {told['scores']['of']:,} scores {'are' if many else 'is'} absurd, more than "
        f"{FAR:.0f} times the usual spread away from the same example's under other models: "
        f"{_listed(named, count, '; ')}."
    )
    if not told["taken_as_they_are"]:
        text += f" Attacks take {'each' if many else 'it'} to be {NEAR:.0f} times away."
    again = "this model again, or remove this example"
    if many:
        again = "these models again, or remove these examples"
    return f"{text} Score {again}."


def _examples(told: Mapping[str, Any]) -> str:
    count = told["examples"]["count"]
    if not count:
        return ""
    named = [
        f"{one['example']} ({_times(one['distance'])})" for one in told["examples"]["farthest"]
    ]
    many = count > 1
    text = (
        f"{count:,} example{'s are' if many else ' is'} absurdly far from all others under all "
        f"models alike, in units of the usual spread: {_listed(named, count)}."
    )
    if not told["taken_as_they_are"]:
        text += f" {'Their' if many else 'Its'} scores were drawn in, standing to each other as "
        text += "before."
    return f"{text} Look at {'them' if many else 'it'}: what is no real example is to be removed."


def _models_named(numbers: list[int]) -> str:
    return f"model{'s' * (len(numbers) > 1)} {_listed(numbers[:NAMED], len(numbers))}"


def _times(distance: float) -> str:
    """Two digits of a number that may be very large."""
    return f"{float(f'{distance:.2g}'):,.0f}" if distance < 1e9 else f"{distance:.2g}"


def _listed(named: Sequence[object], count: int, comma: str = ", ") -> str:
    """Those that are named, and that there are more."""
    return comma.join([*map(str, named), *["…"] * (count > len(named))])
