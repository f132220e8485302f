"""What the law of hierarchical LiRA rests on, from the scores that are kept beside this script.

    python docs/results/law.py        # rewrites its part of docs/results.md

Of every run, with all its models: what training adds to examples by the level they have without;
the numbers of the law that hardly differ between runs, fitted with priors three times as wide as
the attack's; and by how much weights of views are ahead of their mean, with 95 % intervals. A
minute or two, no JAX. What docs/methods.md says of these is read off here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

from lira_jax.attacks import DEFAULT, law_fit, lira_bayes, references, view_weights
from lira_jax.config import AttackConfig
from lira_jax.evaluation import Resamples, paired_differences, resampled
from lira_jax.score_set import ScoreSet, check, read_npz

sys.path.insert(0, str(Path(__file__).parents[1]))
from every_attack import AUC, PAGE, RUNS, TPR, Figure, Run, part_of
from shared import fill, table

LEVELS = 5  # groups of examples, as many in each
WIDER = 3.0
MODELS = (4, 8, 16)


def main() -> None:
    """Command line."""
    runs = [(run, read_npz(run.file)) for run in RUNS]
    for _, score_set in runs:
        check(score_set)
    shares = [f"level {q + 1}/{LEVELS}" for q in range(LEVELS)]
    tables = [
        table(["run: level, added", *shares], [_added(*each) for each in runs]),
        table(["run", "ω", "a₁", "s", "e", "T", "t₁"], [_numbers(*each) for each in runs]),
        table(
            ["run", "models", "AUC, mean", "weights", "TPR at 0.1 %, mean", "weights"],
            [row for each in runs for row in _views(*each)],
        ),
    ]
    fill(PAGE, {"law": re.sub(r"(?<=[ (])-(?=\d)", "−", "\n\n".join(tables))})
    print(f"{PAGE}: recomputed")


def _centred(score_set: ScoreSet) -> lira_bayes.Centred:
    rule = references.find(score_set)
    return lira_bayes.prepare_for_others(score_set, rule, AttackConfig())


def _added(run: Run, score_set: ScoreSet) -> Sequence[str]:
    """Mean OUT score, and mean of IN less OUT, by groups of examples.

    Groups are by the scores of one half of the models, means those of the other, so that no
    chance that sorts an example has a part in its means.
    """
    centred = _centred(score_set)
    x, keep = centred.x[0], centred.keep
    half = len(x) // 4 * 2
    place = np.where(keep, 0, x)[:half].sum(axis=0) / (~keep[:half]).sum(axis=0)
    x, keep = x[half:], keep[half:]
    inside, outside = (np.where(of, x, 0).sum(axis=0) / of.sum(axis=0) for of in (keep, ~keep))
    groups = np.array_split(np.argsort(place, kind="stable"), LEVELS)
    return [
        run.title,
        *(f"{outside[g].mean():.1f}, {(inside - outside)[g].mean():.2f}" for g in groups),
    ]


def _numbers(run: Run, score_set: ScoreSet) -> Sequence[str]:
    priors = {name: (about, WIDER * far) for name, (about, far) in law_fit.PRIORS.items()}
    with patch.object(law_fit, "PRIORS", priors):
        law = law_fit.fit(*lira_bayes.of_references(_centred(score_set), lira_bayes.ELSEWHERE))
    kinds = law.kinds()
    found = (np.exp(law.log_spread), law.reach_slope, np.exp(law.log_varied), kinds.floor,
             kinds.scale, law.level_slope)  # fmt: skip
    return [run.title, *(f"{value:.2f}" for value in found)]


def _views(run: Run, score_set: ScoreSet) -> Iterator[Sequence[str]]:
    """The default with the plain mean over views, and how far weights are ahead."""
    models, _, views = score_set.scores.shape
    if views == 1:
        return
    for size in MODELS:
        starts = range(0, models - size + 1, size)
        groups = [
            part_of(score_set, slice(first, first + size), score_set.block) for first in starts
        ]
        member = np.concatenate([group.keep for group in groups])
        draws = Resamples(references.find(groups[0]).fold, member.shape)
        weighted = resampled(_scores(groups), member, draws)
        with patch.object(view_weights, "find", _alike):
            alike = resampled(_scores(groups), member, draws)
        found = paired_differences(weighted, alike)
        cells = [cell for figure in (AUC, TPR) for cell in _cells(figure, alike, found)]
        yield [run.title, str(size), *cells]


def _cells(figure: Figure, alike: object, found: object) -> Sequence[str]:
    value, (low, high) = figure.key(found)  # type: ignore[arg-type]
    of_mean = 100 * figure.of(alike)  # type: ignore[arg-type]
    return [f"{of_mean:.2f}", f"{100 * value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"]


def _alike(views: np.ndarray, keep: np.ndarray) -> np.ndarray:
    del keep
    return np.full(views.shape[2], 1 / views.shape[2])


def _scores(groups: Sequence[ScoreSet]) -> np.ndarray:
    return np.concatenate(
        [
            lira_bayes.attack(group, references.find(group), AttackConfig())[DEFAULT]
            for group in groups
        ]
    )


if __name__ == "__main__":
    main()
