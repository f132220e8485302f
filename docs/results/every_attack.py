"""Every attack against the default, on every run that is kept and at every number of models.

    python docs/results/every_attack.py               # rewrites its part of docs/results.md
    python docs/results/every_attack.py --pack DIR …  # first keeps the scores of finished runs

No JAX, no images: attacks on the scores beside this script (float16). A run takes part once its
file is there, under the name of its configuration.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from lira_jax import workers
from lira_jax.attacks import ATTACKS, DEFAULT, Family, references
from lira_jax.config import AttackConfig
from lira_jax.errors import InputError
from lira_jax.evaluation import Resampled, Resamples, few_false_positives, paired_differences
from lira_jax.evaluation import resampled as resample
from lira_jax.evaluation.judging import AT_ONCE
from lira_jax.evaluation.wording import percent
from lira_jax.score_set import ScoreSet, check, read_npz

sys.path.insert(0, str(Path(__file__).parents[1]))
from kept import HERE, pack
from shared import AT, fill, table

# The default where no reference trained on the example, and the attacks that need no such reference
# although their names do not say so.
OFFLINE = f"{DEFAULT}-offline"
WITHOUT_IN = {"pmia-all", "pmia-class", "quantile-regression", "ye", "watson", "long", "yeom",
              "merlin", "gradient-norm"}  # fmt: skip

PAGE = HERE.parent / "results.md"
MODELS = (4, 8, 16, 32, 64)
# Arrays of a score set that have a row per model.
PER_MODEL = ("scores", "keep", "logits", "merlin", "gradient_norm")
# Surely behind the default, surely ahead of it, and level with it.
BEHIND, AHEAD, LEVEL = "−", "+", ""


@dataclass(frozen=True)
class Run:
    """A run whose scores are kept.

    Attributes:
        name: of its file.
        title: for readers.
        config: of its training, in `configs/`; empty where the page already says it.
        data: what `data.path` has to lead to; empty for none.
    """

    name: str
    title: str
    config: str = ""
    data: str = ""

    @property
    def file(self) -> Path:
        """Where its scores are kept."""
        return HERE / f"{self.name}.npz"


RUNS = (
    Run("cifar10_jpeg", "CIFAR-10 (JPEG), ResNet-8, mirror and shifts, 18 views"),
    Run("cifar10_jpeg_plain", "CIFAR-10 (JPEG), ResNet-8, no augmentation",
        "results/cifar10_jpeg_plain.toml", "cifar10-jpeg/"),
    Run("mnist_convnet", "MNIST, ConvNet", "results/mnist_convnet.toml", "mnist/"),
    Run("held_out_digits", "Held out: digits, ConvNet", "results/held_out_digits.toml"),
    Run("held_out_digits_quarter", "Held out: digits, members a quarter, ResNet-8",
        "results/held_out_digits_quarter.toml"),
    Run("held_out_mnist", "Held out: MNIST, ResNet-8, few epochs",
        "results/held_out_mnist.toml", "mnist/"),
    Run("held_out_cifar10_jpeg", "Held out: CIFAR-10 (JPEG), ConvNet, mirror and shifts, 2 views",
        "results/held_out_cifar10_jpeg.toml", "cifar10-jpeg/"),
    Run("held_out_mnist_convnet", "Held out, second lot: MNIST, ConvNet",
        "results/held_out_mnist_convnet.toml", "mnist/"),
    Run("held_out_digits_convnet", "Held out, second lot: digits, ConvNet",
        "results/held_out_digits_convnet.toml"),
    Run("held_out_cifar10_jpeg_resnet",
        "Held out, second lot: CIFAR-10 (JPEG), ResNet-8, trained without mirror, 2 views",
        "results/held_out_cifar10_jpeg_resnet.toml", "cifar10-jpeg/"),
    Run("held_out_cifar10_jpeg_convnet",
        "Held out, second lot: CIFAR-10 (JPEG), ConvNet, mirror and shifts, 18 views",
        "results/held_out_cifar10_jpeg_convnet.toml", "cifar10-jpeg/"),
)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """What every attack reaches on one run cut into groups of so many models.

    Attributes:
        run: which.
        models: in each group, M.
        attacks: figures by name.
        few: do fewer than 10 expected false positives stand behind 0.1 %?
    """

    run: Run
    models: int
    attacks: Mapping[str, Resampled]
    few: bool


@dataclass(frozen=True)
class Difference:
    """By how much a reference attack is ahead of another in one figure, with its interval."""

    where: Judged
    other: str
    value: float
    interval: Sequence[float]

    @property
    def mark(self) -> str:
        """How the other attack stands to the reference."""
        low, high = self.interval
        return BEHIND if low > 0 else AHEAD if high < 0 else LEVEL

    def __str__(self) -> str:
        """In percentage points."""
        low, high = self.interval
        return f"{_points(self.value)} ({_points(low)} to {_points(high)})"


@dataclass(frozen=True)
class Figure:
    """A figure to compare attacks by."""

    title: str
    of: Callable[[Resampled], float]
    key: Callable[[Mapping[str, Any]], tuple[float, Sequence[float]]]


TPR = Figure(
    "TPR at 0.1 % FPR",
    lambda attack: attack.tpr_at_fpr[AT],
    lambda found: (found["tpr_at_fpr"][AT], found["tpr_at_fpr_ci"][AT]),
)
AUC = Figure("AUC", lambda attack: attack.auc, lambda found: (found["auc"], found["auc_ci"]))


def judge(run: Run, score_set: ScoreSet) -> Iterator[Judged]:
    """Every attack that the scores allow, with every number of models that there are.

    For each M the models are cut into disjoint groups, each is attacked as a run of its own, and
    the targets of all groups are pooled. Where a group has no references, that M is left out.
    """
    rule = references.find(score_set)
    block = rule.fold if rule.order is None else None
    models = len(score_set.keep)
    able = [f for f in ATTACKS.values() if all(getattr(score_set, n) is not None for n in f.needs)]
    for size in (size for size in MODELS if size <= models):
        start = time.perf_counter()
        starts = range(0, models - size + 1, size)
        groups = [part_of(score_set, slice(first, first + size), block) for first in starts]
        try:
            rules = [references.find(group) for group in groups]
        except InputError:
            continue
        member = np.concatenate([group.keep for group in groups])
        resamples = Resamples(rule.fold, member.shape)

        def judged(
            attack: tuple[str, np.ndarray],
            member: np.ndarray = member,
            resamples: Resamples = resamples,
        ) -> tuple[str, Resampled]:
            return attack[0], resample(attack[1], member, resamples)

        scores = _attacks(able, list(zip(groups, rules, strict=True)))
        attacks = dict(workers.in_order(judged, scores, AT_ONCE))
        few = few_false_positives(int((~member).sum()))[AT]
        print(f"{run.name}: {size} models, {time.perf_counter() - start:.0f} s", flush=True)
        yield Judged(run, size, attacks, few)


def part_of(score_set: ScoreSet, models: slice, block: int | None) -> ScoreSet:
    """Some of a run's models, as a run of their own."""
    arrays = {name: getattr(score_set, name) for name in PER_MODEL}
    cut = {name: None if array is None else array[models] for name, array in arrays.items()}
    return dataclasses.replace(score_set, block=block, **cut)


def _attacks(
    families: Sequence[Family], groups: Sequence[tuple[ScoreSet, references.References]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Every attack's scores of the targets of all groups, one attack after the other."""
    for family in families:

        def of_group(
            group: tuple[ScoreSet, references.References], family: Family = family
        ) -> dict[str, np.ndarray]:
            return family.attack(*group, AttackConfig(), False)

        parts = list(workers.in_order(of_group, groups, len(groups)))
        for name in list(parts[0]):
            yield name, np.concatenate([part.pop(name) for part in parts])


def differences(where: Judged, figure: Figure, reference: str) -> list[Difference]:
    """By how much the reference is ahead of every other attack, in one figure."""
    first = where.attacks[reference]
    return [
        Difference(where, name, *figure.key(paired_differences(first, second)))
        for name, second in where.attacks.items()
        if name != reference
    ]


def section(judged: Sequence[Judged], settings: Mapping[str, str]) -> str:
    """The generated part of the page.

    Args:
        judged: of all runs.
        settings: by the run's name, what its section says first.
    """
    found, offline = (
        {figure.title: [of(where, figure, name) for where in judged] for figure in (TPR, AUC)}
        for of, name in ((differences, DEFAULT), (_offline, OFFLINE))
    )
    parts = [
        _standing(found, DEFAULT),
        _summary(judged, found, DEFAULT),
        f"For an attacker without any model that trained on the example, `{OFFLINE}` against the "
        "attacks that need none:",
        _standing(offline, OFFLINE),
        _summary(judged, offline, OFFLINE),
    ]
    for run in dict.fromkeys(where.run for where in judged):
        places = [place for place, where in enumerate(judged) if where.run == run]
        own = {title: [found[title][place] for place in places] for title in found}
        table_of_run = _table([judged[place] for place in places], own)
        parts += [f"### {run.title}", settings[run.name], _standing(own, DEFAULT), table_of_run]
    return "\n\n".join(parts)


def _offline(where: Judged, figure: Figure, reference: str) -> list[Difference]:
    """By how much the reference is ahead of the attacks that need no IN references."""
    return [
        difference
        for difference in differences(where, figure, reference)
        if "offline" in difference.other or difference.other in WITHOUT_IN
    ]


Found = Mapping[str, Sequence[Sequence[Difference]]]


def _standing(found: Found, reference: str) -> str:
    """Where the reference is surely behind anything, and how often surely ahead."""
    lines = []
    for title, places in found.items():
        all_of_them = [difference for place in places for difference in place]
        marks = [difference.mark for difference in all_of_them]
        several = len({difference.where.run for difference in all_of_them}) > 1
        behind: dict[str, list[str]] = {}
        for each in all_of_them:
            if each.mark == AHEAD:
                what = f"`{each.other}`" + f" on {each.where.run.title}" * several
                behind.setdefault(what, []).append(f"with {each.where.models} models {each}")
        sure = "; ".join(f"{what} {', '.join(at)}" for what, at in behind.items())
        lines.append(
            f"{title}: of {len(marks)} comparisons, `{reference}` is surely ahead in "
            f"{marks.count(BEHIND)}, level in {marks.count(LEVEL)}, and "
            + (f"**surely behind in {marks.count(AHEAD)}**: {sure}." if behind else
               "surely behind in none.")
        )  # fmt: skip
    return "\n\n".join(lines)


def _summary(judged: Sequence[Judged], found: Found, reference: str) -> str:
    """Run × M: the reference, and in each figure the best other attack and the difference."""
    heads = ["run", "models"]
    for figure in (TPR, AUC):
        heads += [f"{figure.title}: `{reference}`", "best other", "difference"]
    rows = []
    for place, where in enumerate(judged):
        first = place == 0 or judged[place - 1].run != where.run
        row = [where.run.title if first else "", f"{where.models}"]
        for figure in (TPR, AUC):
            # The default without IN references is no other attack; tables of runs have it.
            others = [each for each in found[figure.title][place] if each.other != OFFLINE]
            best = min(others, key=lambda difference: difference.value)
            verdict = {BEHIND: " **ahead**", AHEAD: " **behind**", LEVEL: ""}[best.mark]
            star = "\\*" if where.few and figure is TPR else ""
            row += [
                f"{percent(figure.of(where.attacks[reference]))}{star}",
                f"`{best.other}` {percent(figure.of(where.attacks[best.other]))}{star}",
                f"{best}{verdict}",
            ]
        rows.append(row)
    return table(heads, rows)


def _table(judged: Sequence[Judged], found: Found) -> str:
    """Attacks × M of one run: TPR and AUC, each with how it stands to the default."""
    marks = {
        (difference.where.models, difference.other, title): difference.mark
        for title, places in found.items()
        for place in places
        for difference in place
    }

    def cell(where: Judged, name: str) -> str:
        text = " / ".join(
            f"{percent(figure.of(where.attacks[name]))}"
            f"{marks.get((where.models, name, figure.title), LEVEL)}"
            for figure in (TPR, AUC)
        )
        return f"**{text}**" if name == DEFAULT else text

    names = list(judged[0].attacks)
    rows = [[f"`{name}`", *(cell(where, name) for where in judged)] for name in names]
    return table(["attack", *(f"{where.models} models" for where in judged)], rows)


def setting(run: Run, score_set: ScoreSet) -> str:
    """What a run is, how well its models do, what was not run, and how the run was made."""
    models, examples, views = score_set.scores.shape
    text = (
        f"{models} models, {examples:,} examples, {views} view{'s' * (views > 1)}, "
        f"{int(score_set.keep[0].sum()):,} members a model."
    )
    if score_set.logits is not None and score_set.labels is not None:
        right = np.argmax(score_set.logits, axis=2) == score_set.labels
        members, others = right[score_set.keep].mean(), right[~score_set.keep].mean()
        text += f" Right on {percent(members)} % of members and {percent(others)} % of the rest."
    for need in dict.fromkeys(need for family in ATTACKS.values() for need in family.needs):
        if getattr(score_set, need) is None:
            lacking = [f"`{n}`" for f in ATTACKS.values() if need in f.needs for n in f.titles]
            text += f" Without `{need}` there are no {', '.join(lacking)}."
    if not run.config:
        return text
    path = f" --data.path {run.data}" if run.data else ""
    commands = (
        f"python train.py configs/{run.config} --run runs/{run.name}{path}",
        f"python score.py --run runs/{run.name}",
        f"python docs/results/every_attack.py --pack runs/{run.name}",
    )
    return "\n".join([text, "", "```", *commands, "```"])


def _points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    points = round(100 * share, 2)
    return f"{points:+.2f}".replace("-", "−") if points else "0.00"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare every attack with the default.")
    parser.add_argument(
        "--pack",
        type=Path,
        metavar="DIR",
        nargs="+",
        default=[],
        help="finished runs to keep first",
    )
    for directory in parser.parse_args().pack:
        pack(directory, HERE / f"{directory.name}.npz")
    runs = {run: check(read_npz(run.file)) for run in RUNS if run.file.exists()}
    with threadpool_limits(1, "blas"):
        judged = [one for run, score_set in runs.items() for one in judge(run, score_set)]
    settings = {run.name: setting(run, score_set) for run, score_set in runs.items()}
    fill(PAGE, {"every-attack": section(judged, settings)})
    print(f"{PAGE}: recomputed from {', '.join(run.file.name for run in runs)}")


if __name__ == "__main__":
    main()
