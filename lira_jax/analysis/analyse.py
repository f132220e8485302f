"""Stage 3: every attack on one set of scores, judged.

`analyse` is all of it, on arrays; `attack` also writes what it found (`files.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from lira_jax import __version__, evaluation, workers
from lira_jax.analysis import (
    budgets,
    epsilon,
    exposure,
    loss_traces,
    null_check,
    outliers,
    runnable,
    verdict,
)
from lira_jax.analysis.per_example_fpr import reliability
from lira_jax.analysis.statistics import statistic_curves
from lira_jax.attacks import (
    ATTACKS,
    DEFAULT,
    TITLES,
    Attack,
    Family,
    ablation,
    centring,
    reference_code,
    references,
)  # fmt: skip
from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig, Experiment, flatten, keep_fraction
from lira_jax.data import datasets
from lira_jax.errors import InputError
from lira_jax.evaluation.judging import AT_ONCE, Curve, headline, judged
from lira_jax.findings import Findings
from lira_jax.label_only import answers, results
from lira_jax.label_only.answers import LabelAnswers
from lira_jax.run import run_dir, score_files
from lira_jax.score_set import ScoreSet, check, of_examples, read_only
from lira_jax.trust import outputs
from lira_jax.trust import results as trust_results
from lira_jax.trust.outputs import Outputs
from lira_jax.user_code import import_function, running

# The attack that stands beside label-only attacks.
BESIDE = "lira-online"


@dataclass(frozen=True)
class About:
    """What is known beyond scores and masks. Nothing of it changes a figure.

    Attributes:
        settings: of the run, by dotted name; None for scores made elsewhere.
        versions: of the software that trained the models, by name.
        images: the examples, to draw in the report; None where there are none.
        no_images: why there are none.
        classes: names of the K classes; None where unknown.
        loss_ranges: of `loss_traces.interquartile_ranges`; None where training kept no traces.
    """

    settings: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    images: UInt8[np.ndarray, "E H W C"] | None = None
    no_images: str = "scores that were made elsewhere come without images"
    classes: tuple[str, ...] | None = None
    loss_ranges: Float[np.ndarray, " E"] | None = None


def about_run(run: Path, experiment: Experiment, no_images: str = "") -> About:
    """What a run's own files tell, and its images if the data are where they were.

    Args:
        run: a run directory that is scored.
        experiment: its configuration. Settings of scoring are those that the scores were made with.
        no_images: why the data must not be read; empty to read them.
    """
    versions = run_dir.read_versions(run)
    about = About(
        settings=flatten(score_files.as_scored(run, experiment)),
        versions={name: text for name, text in versions.items() if name not in run_dir.DIGESTS}
        | _other_versions(run),
        loss_ranges=loss_traces.of_run(run, experiment),
    )
    if no_images:
        return replace(about, no_images=no_images)
    try:
        data = datasets.load(experiment.data, experiment.seed)
        if data.digest != versions["data_digest"]:
            return replace(about, no_images="the data have changed since training")
        images, _ = datasets.in_equal_folds(data, keep_fraction(experiment.train.keep)[1])
    except InputError as error:  # the attacks need no images
        return replace(about, no_images=str(error))
    return replace(about, images=images, classes=data.classes)


def _other_versions(run: Path) -> dict[str, str]:
    """What was computed with what, where it was not all with the same versions."""
    trained, scored = run_dir.trained_with(run), score_files.scored_with(run)
    if len({*trained, *scored}) < 2:
        return {}
    groups = (f"models {run_dir.as_ranges(models)}: {text}" for text, models in trained.items())
    return {"trained with": "; ".join(groups), "scored with": "; ".join(scored)}


def analyse(
    score_set: ScoreSet,
    config: AttackConfig,
    about: About = About(),
    *,
    check_null: bool = False,
    labels_of: LabelAnswers | None = None,
    elsewhere: Outputs | None = None,
    ready: Callable[[], object] | None = None,
    progress: bool = False,
) -> Findings:
    """Every attack with every model as target, and all that is derived from them.

    Inserted canaries are attacked with all other examples, and reported apart from them. Absurd
    scores are drawn in before any attack, and absurd models left out (`outliers.py`).

    Args:
        score_set, config, about, check_null, labels_of, elsewhere, progress: as `attacking.attack`.
        ready: called once all input is checked, before the long work.

    Raises:
        InputError: as `attacking.attack`.
    """
    check(score_set, config.queries)
    # Attacks by labels and by elsewhere need references of every example.
    rule = references.find(score_set, few=labels_of is None and elsewhere is None)
    chosen = families(config)
    if ready is not None:
        ready()
    given, absurd = score_set, outliers.find(score_set, config.queries)
    kept = outliers.kept_models(given, rule, absurd)
    score_set = outliers.as_attacked(given, absurd, kept)
    differing = centring.differences(score_set, config.queries)
    if config.centred:
        score_set = centring.scores_centred(score_set, config.queries)
    rule = references.find(score_set, few=True)
    models, examples, views = score_set.scores.shape
    used = config.queries or views
    canary = np.zeros(examples, bool) if score_set.canary is None else score_set.canary
    natural, natural_rule, natural_given = score_set, rule, given
    if canary.any():
        natural, natural_given = (of_examples(each, ~canary) for each in (score_set, given))
        natural_rule = references.find(natural, few=True)
    member = natural.keep
    bar = tqdm(total=len(chosen) + 7, leave=False, disable=None if progress else True)

    attacked = _attack(score_set, rule, config, chosen, canary, bar, progress)
    entries, canary_entries = attacked.entries, attacked.canary_entries
    with _step(bar, "ablation"):
        ablation_entries = list(_ablation(natural, natural_rule, config, entries))
    with _step(bar, "fewer views and models"):
        # With all models and views they are the attacks themselves.
        known = None if canary.any() else {entry["name"]: entry for entry in entries}
        by_models, no_levels = budgets.by_models(natural, natural_rule, config, known=known)
        by_queries = budgets.by_queries(natural, natural_rule, config, known=known)
    with _step(bar, "other statistics"):
        statistics = {} if rule.lacking else statistic_curves(natural, natural_rule, config)
        bound = _bound(attacked, score_set.keep, canary)
    with _step(bar, "label-only attacks"):
        of_labels, drawn_of_labels = None, None
        if labels_of is not None:
            labels_of = answers.of_first(labels_of, member.shape[1])
            beside = {BESIDE: _of_all_models(attacked.scores[BESIDE], kept)[[*labels_of.models]]}
            of_labels, drawn_of_labels = results.results(labels_of, beside)
    with _step(bar, "inputs from elsewhere"):
        of_trust, drawn_of_trust = None, None
        if elsewhere is not None:
            first = outputs.of_first(elsewhere, member.shape[1])
            of_trust, drawn_of_trust = trust_results.results(first, natural_given, config)
    with _step(bar, "null check"):
        null = null_check.null_check(score_set, config, chosen) if check_null else None
    metrics: dict[str, Any] = {
        "schema": 2,
        "source": score_set.source,
        "models": models,
        "examples": member.shape[1],
        "queries": used,
        "protocol": "leave-block-out",
        **_rule(rule.words, rule.count_in, rule.count_out, config.centre, member),
        "centred": config.centred,
        "folds": models // rule.fold,
        "canaries": int(canary.sum()),
        "default": DEFAULT,
        "strongest": max(entries, key=_strength)["name"],
        "attacks": entries,
        "not_run": runnable.not_run(chosen, score_set, rule, attacked.curves),
        "ablation": ablation_entries,
        "by_queries": by_queries,
        "by_models": by_models,
        "by_models_left_out": no_levels,
        "accuracy": _accuracy(natural_given),
        "model_levels": differing,
        "outliers": outliers.as_json(given, absurd, kept),
        "epsilon": bound,
        "canary_attacks": canary_entries or None,
        "null_check": null,
        "label_only": of_labels,
        "trust": of_trust,
        "settings": None if about.settings is None else dict(about.settings),
        "versions": _versions(about),
    }
    with _step(bar, "exposure of examples"):
        scores = attacked.scores[DEFAULT]
        exposed = exposure.exposure(score_set, DEFAULT, scores, config)
        exposed, rates, flips = reliability(score_set, rule, config, scores, exposed, canary)
    bar.close()
    metrics["per_example_fpr"] = rates
    metrics["vulnerability"] = {
        "attack": DEFAULT,
        "examples": member.shape[1],
        "d_median": float(np.nanmedian(exposed.d[~canary])),
        "given_away": verdict.given_away(exposed, ~canary),
        "coin_flips": flips,
    }
    metrics["loss_traces"] = loss_traces.judged(about.loss_ranges, exposed, ~canary)
    metrics["verdict"] = verdict.verdict(metrics)
    return Findings(
        metrics=metrics,
        score_set=score_set,
        curves=attacked.curves,
        label_only=drawn_of_labels,
        trust=drawn_of_trust,
        statistics=statistics,
        vulnerability=exposed,
        images=about.images,
        no_images=about.no_images,
        classes=about.classes,
    )


@contextmanager
def _step(bar: tqdm, description: str) -> Iterator[None]:
    """One step of the progress bar, which also counts where there is nothing to do."""
    bar.set_description(description)
    yield
    bar.update()


@dataclass
class _Attacked:
    """What every attack came to.

    Attributes:
        entries: of `metrics.json`, in the order of tables; of natural examples.
        canary_entries: the same of canaries; empty where there are too few.
        curves: by the attack's name.
        scores: of BESIDE and of the default, about which more is asked.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    canary_entries: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    scores: dict[str, Float[np.ndarray, "N E"]] = field(default_factory=dict)


def _attack(
    score_set: ScoreSet,
    rule: References,
    config: AttackConfig,
    chosen: Mapping[str, Family],
    canary: Bool[np.ndarray, " E"],
    bar: tqdm,
    progress: bool,
) -> _Attacked:
    """Every attack that the score set allows; each is judged while later ones are made."""
    member, inserted = score_set.keep[:, ~canary], score_set.keep[:, canary]

    def made() -> Iterator[tuple[str, Float[np.ndarray, "N E"]]]:
        for family_name, family in chosen.items():
            with _step(bar, family_name):
                if runnable.lacking(family, score_set, rule):
                    continue
                scores = family.attack(score_set, rule, config, progress)
                for name in list(scores):
                    yield name, scores.pop(name)
        bar.set_description("intervals")

    def judge(
        attack: tuple[str, Float[np.ndarray, "N E"]],
    ) -> tuple[str, Float[np.ndarray, "N E"], dict[str, Any], Curve, dict[str, Any] | None]:
        name, scores = attack
        of_natural = scores[:, ~canary] if canary.any() else scores
        entry, curve = judged(of_natural, member, rule.fold)
        of_canaries = None
        if inserted.any() and not inserted.all():
            of_canaries, _ = judged(scores[:, canary], inserted, rule.fold)
        return name, scores, entry, curve, of_canaries

    attacked = _Attacked()
    for name, scores, entry, curve, of_canaries in workers.in_order(judge, made(), AT_ONCE):
        naming = {"name": name, "title": TITLES.get(name, name)}
        attacked.entries.append(naming | entry)
        attacked.curves[name] = curve
        if of_canaries is not None:
            attacked.canary_entries.append(naming | of_canaries)
        if name in (BESIDE, DEFAULT):
            attacked.scores[name] = scores
    return attacked


def _of_all_models(
    scores: Float[np.ndarray, "M E"], kept: Bool[np.ndarray, " N"]
) -> Float[np.ndarray, "N E"]:
    """Scores of the models kept in their places; of those left out, the lowest there is."""
    every = np.full((kept.size, scores.shape[1]), scores.min())
    every[kept] = scores
    return every


def _bound(
    attacked: _Attacked, keep: Bool[np.ndarray, "N E"], canary: Bool[np.ndarray, " E"]
) -> dict[str, Any]:
    """The bound on ε by the default attack, which was named before any result."""
    scores = attacked.scores[DEFAULT]

    def of(chosen: Bool[np.ndarray, " E"]) -> dict[str, Any]:
        return epsilon.lower_bound(scores[:, chosen], keep[:, chosen])

    bound = {"attack": DEFAULT} | of(~canary)
    return bound | {"of_canaries": of(canary)} if attacked.canary_entries else bound


def analyse_as_reference_code(
    score_set: ScoreSet,
    config: AttackConfig,
    about: About = About(),
    *,
    ready: Callable[[], object] | None = None,
    progress: bool = False,
) -> Findings:
    """The attacks as the public LiRA code evaluates them (`attacks/reference_code.py`).

    Args, Raises: as for `analyse`.
    """
    check(score_set, config.queries)
    models, examples, views = score_set.scores.shape
    count_in, count_out = reference_code.list_lengths(score_set)
    if ready is not None:
        ready()
    member = score_set.keep[-1:]
    absurd = outliers.find(score_set, config.queries)
    entries, curve_of = [], {}
    for name, scores in reference_code.attack(score_set, config.queries, progress).items():
        entry, curve_of[name] = judged(scores, member, 1)
        rates = evaluation.reference_code_summary(evaluation.roc(scores, member))
        entries.append({"name": name, "title": TITLES.get(name, name)} | entry | rates)
    metrics = {
        "schema": 2,
        "source": score_set.source,
        "models": models,
        "examples": examples,
        "queries": config.queries or views,
        "protocol": "reference-code",
        **_rule(reference_code.WORDS, count_in, count_out, "median", member),
        "folds": 1,
        "canaries": 0,
        "default": None,
        "strongest": max(entries, key=_strength)["name"],
        "attacks": entries,
        **{key: [] for key in ("not_run", "ablation", "by_queries", "by_models")},
        **dict.fromkeys(("accuracy", "vulnerability", "epsilon", "canary_attacks", "null_check")),
        "outliers": outliers.as_json(score_set, absurd, None),
        "settings": None if about.settings is None else dict(about.settings),
        "versions": _versions(about),
    }
    metrics["verdict"] = verdict.verdict(metrics)
    return Findings(metrics, score_set, curve_of, {})


def families(config: AttackConfig) -> dict[str, Family]:
    """The registered attacks, and the user's own (`attack.extra`) after them.

    Raises:
        InputError: `attack.extra` names nothing that can be imported. The family itself raises it
            where the user's function fails, or returns anything but finite scores [N, E] by names
            that no other attack has.
    """
    if not config.extra:
        return ATTACKS
    own = import_function(config.extra, "attack.extra")
    return ATTACKS | {config.extra: Family(_guarded(own, f'attack.extra = "{config.extra}"'), {})}


def _guarded(own: Callable[..., Any], where: str) -> Attack:
    """A user's attack, whose failures and odd results are bad input to us."""
    taken = {*TITLES, *(rung.name for rung in ablation.RUNGS)}

    def attack(
        score_set: ScoreSet, rule: References, config: AttackConfig, progress: bool
    ) -> dict[str, Float[np.ndarray, "N E"]]:
        with running(where, "return a dict of scores [N, E] by name"):
            scores = own(read_only(score_set), rule, config, progress)
            arrays = {str(key): np.asarray(value, np.float64) for key, value in scores.items()}
        for key, value in arrays.items():
            if key in taken:
                raise InputError(
                    f"{where}: `{key}` is the name of another attack; choose a new one"
                )
            finite = bool(np.isfinite(value).all())
            if value.shape != score_set.keep.shape or not finite:
                what = f"shape {value.shape}" + ", not all finite" * (not finite)
                raise InputError(
                    f"{where}: `{key}` has {what}; return finite scores of shape "
                    f"{score_set.keep.shape}, one per target and example"
                )
        return arrays

    return attack


def _strength(entry: Mapping[str, Any]) -> tuple[float, float]:
    """TPR at 0.1 % FPR, or at 1 % where few false positives stand behind it, surely; then AUC."""
    few = entry["few_false_positives"]
    key = next((key for key in ("0.001", "0.01") if not few[key]), None)
    return (entry["tpr_at_fpr_ci"][key][0] if key else 0.0), entry["auc"]


def _ablation(
    score_set: ScoreSet,
    rule: References,
    config: AttackConfig,
    entries: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """The rungs of the ablation; those that are attacks of their own are judged already.

    None where some example leaves targets without references.
    """
    if rule.lacking:
        return
    known = {entry["name"]: entry for entry in entries} if score_set.canary is None else {}

    def judge(
        attacked: tuple[ablation.Rung, Float[np.ndarray, "N E"]],
    ) -> tuple[ablation.Rung, dict[str, Any]]:
        rung, scores = attacked
        naming = {"ladder": rung.ladder, "step": rung.step, "name": rung.name}
        return rung, naming | headline(scores, score_set.keep, rule.fold)

    rungs = ablation.ladders(score_set, rule, config, skip=tuple(known))
    made = dict(workers.in_order(judge, rungs, AT_ONCE))
    for rung in ablation.rungs(score_set, config):
        yield made.get(rung) or known[rung.name] | {"ladder": rung.ladder, "step": rung.step}


def _accuracy(score_set: ScoreSet) -> list[dict[str, Any]] | None:
    """Share of members and of non-members that each model classifies right."""
    if score_set.logits is None or score_set.labels is None:
        return None
    accuracies = []
    for model, (logits, inside) in enumerate(zip(score_set.logits, score_set.keep, strict=True)):
        right = np.argmax(logits, axis=1) == score_set.labels
        shares = {"member": float(right[inside].mean()), "nonmember": float(right[~inside].mean())}
        accuracies.append({"model": model} | shares)
    return accuracies


def _versions(about: About) -> dict[str, str]:
    """Of what trained the models, as given, and of what attacks them."""
    here = [f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn")]
    return {**about.versions, "attacked with": ", ".join([f"lira_jax {__version__}", *here])}


def _rule(
    words: str, count_in: int, count_out: int, centre: str, member: Bool[np.ndarray, "T E"]
) -> dict[str, Any]:
    members = int(member.sum())
    return {
        "rule": words,
        "references": {"in": count_in, "out": count_out},
        "centre": centre,
        "members": members,
        "nonmembers": member.size - members,
    }
