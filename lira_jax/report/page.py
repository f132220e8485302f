"""`report.html`: one self-contained file about one run, from the verdict to the versions.

Semantic HTML with inline style, no scripts and no network. Names, labels, settings and reasons come
from the user's data and files: all of them are escaped.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from lira_jax.attacks import TITLES, outliers
from lira_jax.evaluation import FPRS
from lira_jax.figures import Drawing, Missing, style_of
from lira_jax.figures.histograms import picture
from lira_jax.figures.style import Line
from lira_jax.findings import Findings, Vulnerability, is_few, telling_fpr
from lira_jax.report.tables import (
    FEW,
    Cell,
    Table,
    ablation_table,
    attack_cells,
    attack_heads,
    budget_table,
    calibrated_attacks_table,
    calibration_table,
    difference_cell,
    fpr_text,
    label_only_table,
    main_table,
    outlier_table,
    percent,
    share_cell,
    trust_fpr_table,
    trust_inputs_table,
)

# Images of the most, and as many of the least, exposed examples.
SHOWN = 12
# Larger images are reduced to this side [pixels].
_IMAGE_SIDE = 96
# An example is counted as given away where the attack is right under this share of the models.
_TOLD_RIGHT = 0.9

_NULL_CHECK = "python attack.py --run DIR --null_check True"

_LABEL_ONLY = "python score.py --run DIR --label-only"

_TRUST = "python score.py --run DIR --trust"

_SOURCES = {
    "LiRA, in all variants": "N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr, "
    "Membership Inference Attacks From First Principles, IEEE S&P 2022 (arXiv 2112.03570)",
    "yeom": "S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha, Privacy Risk in Machine Learning: "
    "Analyzing the Connection to Overfitting, CSF 2018",
    "shokri": "R. Shokri, M. Stronati, C. Song, V. Shmatikov, Membership Inference Attacks "
    "Against Machine Learning Models, IEEE S&P 2017",
    "merlin, morgan": "B. Jayaraman, L. Wang, K. Knipmeyer, Q. Gu, D. Evans, Revisiting "
    "Membership Inference Under Realistic Assumptions, PETS 2021",
    "song-mittal": "L. Song, P. Mittal, Systematic Evaluation of Privacy Risks of Machine Learning "
    "Models, USENIX Security 2021",
    "sablayrolles": "A. Sablayrolles, M. Douze, C. Schmid, Y. Ollivier, H. Jégou, White-box vs "
    "Black-box: Bayes Optimal Strategies for Membership Inference, ICML 2019",
    "long": "Y. Long, L. Wang, D. Bu, V. Bindschaedler, X. Wang, H. Tang, C. A. Gunter, K. Chen, "
    "A Pragmatic Approach to Membership Inferences on Machine Learning Models, EuroS&P 2020",
    "watson": "L. Watson, C. Guo, G. Cormode, A. Sablayrolles, On the Importance of Difficulty "
    "Calibration in Membership Inference Attacks, ICLR 2022",
    "ye": "J. Ye, A. Maddi, S. K. Murakonda, V. Bindschaedler, R. Shokri, Enhanced Membership "
    "Inference Attacks against Machine Learning Models, CCS 2022",
    "rmia-online, rmia-offline": "S. Zarifzadeh, P. Liu, R. Shokri, Low-Cost High-Power Membership "
    "Inference Attacks, ICML 2024",
    "label-only attacks": "C. A. Choquette-Choo, F. Tramèr, N. Carlini, N. Papernot, Label-Only "
    "Membership Inference Attacks, ICML 2021 (arXiv 2007.14321)",
    "prediction scores, calibration and inputs from elsewhere": "D. Hintersdorf, L. Struppek, "
    "K. Kersting, To Trust or Not To Trust Prediction Scores for Membership Inference Attacks, "
    "IJCAI 2022 (arXiv 2111.09076)",
    "quantile-regression": "M. Bertran et al., "
    "Scalable Membership Inference Attacks via Quantile Regression, NeurIPS 2023",
}


@dataclass(frozen=True)
class Verdict:
    """What the figures come to.

    Attributes:
        level: `leak`: better than guessing at low false-positive rates; `average`: only over all
            examples; `open`: it would be, were the intervals of so few models to be relied on;
            `canaries`: on inserted canaries alone; `none`: nowhere beyond its error; `unknown`: no
            intervals to tell by.
        sentence: for a reader who knows no ROC.
        attack: name of the attack it is about.
    """

    level: Literal["leak", "average", "open", "canaries", "none", "unknown"]
    sentence: str
    attack: str


_LEVELS = {
    "leak": "Training examples can be recognised",
    "average": "Weak: members are told only on average",
    "open": "Signs of a leak, and too few models to be sure",
    "canaries": "Inserted canaries can be recognised, other examples not surely",
    "none": "No leak found",
    "unknown": "One model attacked: no error can be given",
}


def verdict(findings: Findings) -> Verdict:
    """Judge by the strongest attack, with room for having tried many.

    An attack does better than guessing where its 95 % interval, widened so that all attacks'
    intervals hold at once (Bonferroni, by Student's t, since a bootstrap over few targets gives too
    narrow an interval), lies above chance.
    """
    found = _judged(findings)
    found = replace(found, sentence=found.sentence + _told_right(findings))
    canaries = _canaries_told(findings)
    if canaries:
        level = "canaries" if found.level in ("none", "unknown") else found.level
        found = replace(found, level=level, sentence=f"{found.sentence} {canaries}")
    check = findings.metrics.get("null_check") or {"attacks": ()}
    failed = ", ".join(str(one["name"]) for one in check["attacks"] if not one["ok"])
    if failed:
        warning = f" The null check failed for {failed}: do not rely on what it found."
        found = replace(found, sentence=found.sentence + warning)
    if findings.metrics["attacks"][0].get("over") == "examples" and found.level != "unknown":
        only = " One model was attacked: the interval says nothing about others."
        found = replace(found, sentence=found.sentence + only)
    return found


def _judged(findings: Findings) -> Verdict:
    entries = list(findings.metrics["attacks"])
    key = telling_fpr(findings.metrics)
    tried = f"the strongest of {len(entries)} attacks" if len(entries) > 1 else "the attack"
    if all(entry.get("auc_ci") is None for entry in entries):
        return _without_intervals(entries, key, tried)
    if key is not None:
        chance = FPRS[key]
        above = [entry for entry in entries if _tpr_lower(entry, key, len(entries)) > chance]
        if above:
            # By what is sure of it: of two that are about as strong, the less uncertain one.
            best = max(above, key=lambda entry: entry["tpr_at_fpr_ci"][key][0])
            rate, interval = best["tpr_at_fpr"][key], best["tpr_at_fpr_ci"][key]
            sentence = (
                f"At a false-alarm rate of {_one_in(key)}, {tried} ({_title(best)}) recognises "
                f"{_rate(rate, interval)} of the training examples: about {_times(rate / chance)} "
                "times as many as guessing."
            )
            return Verdict("leak", sentence, best["name"])
    above = [entry for entry in entries if _auc_lower(entry, len(entries)) > 0.5]
    at_low = (
        "There are too few non-members to judge low false-alarm rates"
        if key is None
        else f"At a false-alarm rate of {_one_in(key)} no attack is surely better than guessing"
    )
    if above:
        best = max(above, key=lambda entry: entry["auc"])
        sentence = (
            f"{at_low}; but of one member and one non-member, {_title(best)} picks the "
            f"member in {_rate(best['auc'], best['auc_ci'])} of cases, where guessing gives 50 %."
        )
        return Verdict("average", sentence, best["name"])
    hints = [entry for entry in entries if _hints(entry, key, len(entries))]
    if hints:
        best = max(hints, key=lambda entry: entry["auc"])
        targets = best["targets"]
        sentence = (
            f"Of one member and one non-member, {_title(best)} picks the member in "
            f"{_rate(best['auc'], best['auc_ci'])} of cases, where guessing gives 50 %; but with "
            f"{targets} models attacked such an interval can be too narrow. Train more models."
        )
        return Verdict("open", sentence, best["name"])
    if key is None:
        best = max(entries, key=lambda entry: entry["auc"])
        sentence = (
            "No attack does better than guessing within its error: of one member and one "
            f"non-member, {tried} ({_title(best)}) picks the member in "
            f"{_rate(best['auc'], best['auc_ci'])} of cases, where guessing gives 50 %."
        )
    else:
        best = max(entries, key=lambda entry: entry["tpr_at_fpr"][key])
        sentence = (
            f"No attack does better than guessing within its error: at a false-alarm rate of "
            f"{_one_in(key)}, {tried} ({_title(best)}) recognises "
            f"{_rate(best['tpr_at_fpr'][key], best['tpr_at_fpr_ci'][key])} of the training "
            f"examples, where guessing gives {fpr_text(key)}."
        )
    return Verdict("none", sentence, best["name"])


def _without_intervals(
    entries: Sequence[Mapping[str, Any]], key: str | None, tried: str
) -> Verdict:
    rate = key or "0.01"
    best = max(entries, key=lambda entry: entry["tpr_at_fpr"][rate])
    few = " (fewer than ten false alarms stand behind this)" if is_few(best, rate) else ""
    sentence = (
        f"At a false-alarm rate of {_one_in(rate)}, {tried} ({_title(best)}) recognises "
        f"{_rate(best['tpr_at_fpr'][rate], None)} of the training examples{few}, where guessing "
        f"gives {fpr_text(rate)}; with one model attacked, how far chance had a part in it cannot "
        "be said."
    )
    return Verdict("unknown", sentence, best["name"])


def _tpr_lower(entry: Mapping[str, Any], key: str, attacks: int) -> float:
    interval = (entry.get("tpr_at_fpr_ci") or {}).get(key)
    return _lower(entry, entry["tpr_at_fpr"][key], interval, attacks)


def _auc_lower(entry: Mapping[str, Any], attacks: int) -> float:
    return _lower(entry, entry["auc"], entry.get("auc_ci"), attacks)


def _hints(entry: Mapping[str, Any], key: str | None, attacks: int) -> bool:
    """Is it above chance if its intervals, widened for all attacks, knew their own width?"""
    auc = _lower(entry, entry["auc"], entry.get("auc_ci"), attacks, math.inf) > 0.5
    if key is None:
        return auc
    interval = (entry.get("tpr_at_fpr_ci") or {}).get(key)
    rate = _lower(entry, entry["tpr_at_fpr"][key], interval, attacks, math.inf)
    return auc or rate > FPRS[key]


def _canaries_told(findings: Findings) -> str:
    """A sentence on inserted canaries, if some attack surely tells them."""
    entries = findings.metrics.get("canary_attacks") or ()
    above = [entry for entry in entries if _auc_lower(entry, len(entries)) > 0.5]
    if not above:
        return ""
    best = max(above, key=lambda entry: entry["auc"])
    return (
        f"Of one inserted canary that was trained on and one that was not, {_title(best)} picks "
        f"the right one in {_rate(best['auc'], best['auc_ci'])} of cases."
    )


def _lower(
    entry: Mapping[str, Any],
    value: float,
    interval: Sequence[float] | None,
    attacks: int,
    freedom: float | None = None,
) -> float:
    """The lower end of an interval that holds for all attacks at once."""
    if interval is None:
        return -math.inf
    # The lower side of a bootstrap interval may have no width at all by chance.
    half = max(value - interval[0], (interval[1] - interval[0]) / 2)
    if freedom is None:
        # Targets come in blocks of two or more. Over one target's examples alone there are many.
        freedom = math.inf if entry.get("over") == "examples" else max(entry["targets"] // 2 - 1, 2)
    return value - half * float(student.ppf(1 - 0.025 / attacks, freedom) / norm.ppf(0.975))


def _told_right(findings: Findings) -> str:
    exposed = findings.vulnerability
    if exposed is None:
        return ""
    canary = findings.score_set.canary
    natural = np.ones(exposed.success.shape, dtype=bool) if canary is None else ~canary
    right = (exposed.success >= _TOLD_RIGHT) & (exposed.success_lo > 0.5)
    count = int((right & natural).sum())
    if count == 0:
        return ""
    attack = (findings.metrics.get("vulnerability") or {}).get("attack", "the attack")
    return (
        f" At its most accurate threshold, {TITLES.get(attack, attack)} is right about {count:,} "
        f"of {int(natural.sum()):,} examples under {100 * _TOLD_RIGHT:.0f} % of the models or more."
    )


def _one_in(key: str) -> str:
    return f"1 in {round(1 / FPRS[key]):,}"


def _rate(value: float, interval: Sequence[float] | None) -> str:
    cell = share_cell(value, interval)
    return f"{cell.text} %" + (f" ({cell.interval})" if cell.interval else "")


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _title(entry: Mapping[str, Any]) -> str:
    return str(entry.get("title") or entry["name"])


def write_report(findings: Findings, drawings: Sequence[Drawing | Missing]) -> str:
    """The whole report.

    Args:
        findings: what was measured.
        drawings: from `figures.draw`, in any order.

    Returns:
        HTML, one file; the same findings give the same text.
    """
    drawn = {drawing.name: drawing for drawing in drawings if isinstance(drawing, Drawing)}
    missing = [drawing for drawing in drawings if isinstance(drawing, Missing)]
    found = verdict(findings)
    sections = [
        ("attacks", "All attacks", _attacks(findings, found)),
        ("exposed", "Most and least exposed examples", _exposed(findings, drawn)),
        (
            "histograms",
            "Scores of chosen examples",
            _figures(
                drawn,
                "histograms_logit",
                "histograms_loss",
                "histograms_statistics",
            ),
        ),
        (
            "curves",
            "More ROC curves",
            _figures(
                drawn,
                "roc_online",
                "roc_offline",
                "roc_newer",
                "roc_loss",
                "roc_statistics",
                "roc_gradient_norm",
            ),
        ),
        ("ablation", "From the loss to LiRA, step by step", _ablation(findings)),
        ("label-only", "Label-only attacks", _label_only(findings, drawn)),
        ("trust", "When prediction scores mislead", _trust(findings, drawn)),
        ("budget", "What more models and more views give", _budgets(findings, drawn)),
        ("thresholds", "Thresholds an attacker can choose", _thresholds(findings)),
        ("accuracy", "Accuracy and overfitting", _accuracy(findings, drawn)),
        ("epsilon", "Lower bound on ε", _epsilon(findings)),
        ("canaries", "Canaries", _canaries(findings)),
        ("null", "Null check", _null_check(findings)),
        ("missing", "Not run and not drawn", _missing(findings, missing)),
        ("settings", "Settings and versions", _settings(findings)),
        ("sources", "Sources of the methods", _sources()),
    ]
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in sections)
    parts = "".join(
        f'<section id="{anchor}"><h2>{escape(title)}</h2>{body}</section>'
        for anchor, title, body in sections
    )
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    title = f"Membership inference: {_data_words(findings)[0]}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>"
        f"{_first_screen(findings, drawn, found, title)}"
        f'<nav aria-label="Sections">{links}</nav><main>{parts}</main></body></html>\n'
    )


# The first screen.


def _data_words(findings: Findings) -> tuple[str, dict[str, str]]:
    """A short name of what was attacked, and the facts about it."""
    metrics, settings = findings.metrics, findings.metrics.get("settings") or {}
    name = str(settings.get("data.name") or findings.metrics.get("source") or "scores")
    views = int(metrics["queries"])
    targets = int(metrics["attacks"][0]["targets"])
    counts = metrics["references"]
    facts = {"Data": f"{name}, {metrics['examples']:,} examples in question"}
    if metrics.get("canaries"):
        facts["Data"] += f", and {metrics['canaries']:,} canaries apart"
    if settings.get("network.arch"):
        facts["Network"] = (
            f"{settings['network.arch']}, depth {settings.get('network.depth')}, "
            f"width {settings.get('network.width')}"
        )
    facts["Models"] = f"{metrics['models']} shadow models"
    if settings.get("train.keep"):
        facts["Models"] += f", each trained on {settings['train.keep']} of the examples"
    accuracy = metrics.get("accuracy")
    if accuracy:
        member, other = (np.mean([row[side] for row in accuracy]) for side in _SIDES)
        facts["Accuracy"] = (
            f"{percent(float(member))} % on their members, {percent(float(other))} % on the rest"
        )
    facts["Attacked"] = (
        f"{targets} model{'s' * (targets != 1)}, each with {counts['in']} IN and {counts['out']} "
        f"OUT references; {metrics['members']:,} members, {metrics['nonmembers']:,} non-members"
    )
    facts["Rule"] = f"{metrics['rule']}; {views} view{'s' * (views != 1)} of each example"
    return name, facts


_SIDES = ("member", "nonmember")
_KNOWN = ("lira-online", "lira-offline", "rmia-offline", "watson", "yeom")


def _first_screen(
    findings: Findings, drawn: Mapping[str, Drawing], found: Verdict, title: str
) -> str:
    _, facts = _data_words(findings)
    return (
        '<header class="first"><div>'
        f'<h1>{escape(title)}</h1><p class="soft">Can one tell from these models which examples '
        "they were trained on?</p>"
        f'<p class="verdict {found.level}"><strong>{escape(_LEVELS[found.level])}</strong>'
        f"{_text(found.sentence)}</p>{_short_table(findings, found)}{_list(facts)}</div>"
        f"{_figure(drawn['roc']) if 'roc' in drawn else ''}</header>"
    )


def _short_table(findings: Findings, found: Verdict) -> str:
    """The attack of the verdict beside those that readers know, at the rates that matter."""
    entries = {entry["name"]: entry for entry in findings.metrics["attacks"]}
    names = [found.attack, *(name for name in _KNOWN if name in entries)]
    if len(names) < 4:
        names += list(entries)[:5]
    keys = ("0.001", "0.01")
    rows = []
    for name in dict.fromkeys(names):
        auc, *rates = attack_cells(_less_accuracy(entries[name]), keys)
        rows.append((Cell(_title(entries[name]), code=name), *rates, auc))
    notes = (f"* {FEW}",) if any(cell.few for row in rows for cell in row) else ()
    caption = "Percent, 95 % interval in brackets; all attacks and rates are below"
    return _table(Table(caption, ("attack", *attack_heads(keys), "AUC"), tuple(rows), 1, notes), 0)


# Sections.


def _attacks(findings: Findings, found: Verdict) -> str:
    names = [entry["name"] for entry in findings.metrics["attacks"]]
    words = (
        "<p>AUC: how often the attack ranks a member above a non-member (guessing: 50). Balanced "
        "accuracy: the best it reaches at any threshold (guessing: 50). TPR @ x FPR: the share of "
        "members it recognises when it may accuse a share x of the non-members falsely (guessing: "
        "x). All targets are pooled under one threshold. The attack of the verdict is shaded.</p>"
    )
    table = _table(main_table(findings.metrics), strongest=names.index(found.attack))
    mean = [
        (Cell(_title(entry), code=entry["name"]), *attack_cells(entry["mean_over_targets"]))
        for entry in findings.metrics["attacks"]
        if entry.get("mean_over_targets")
    ]
    if not mean:
        return words + table
    over_targets = Table(
        "Mean over targets, each under a threshold of its own: percent",
        ("attack", "AUC", "balanced accuracy", *attack_heads()),
        tuple(mean),
    )
    return words + table + _details("The same as a mean over targets", _table(over_targets))


def _exposed(findings: Findings, drawn: Mapping[str, Drawing]) -> str:
    exposed = findings.vulnerability
    scores = _figures(drawn, "privacy_scores")
    if exposed is None:
        words = "<p>Exposure of single examples needs more than one model to be attacked.</p>"
        return words + scores
    about = findings.metrics.get("vulnerability") or {}
    by = f" by <code>{escape(str(about['attack']))}</code>" if about.get("attack") else ""
    words = (
        f"<p>Each example was judged{by} under every model. Success is the share of models under "
        "which the attack is right about it, IN and OUT counting alike (guessing: 50\u00a0%); d is "
        "the distance of its scores under models that did and did not train on it, "
        "|μ_in − μ_out| / (σ_in + σ_out)"
        f"{_median_words(about)}. The ranks of the extremes owe something to chance: see the "
        "intervals. All examples are in <code>vulnerability.csv</code>.</p>"
    )
    most, least = exposed.order[:SHOWN], exposed.order[::-1][:SHOWN]
    if findings.images is None:
        if findings.no_images:
            words += f"<p>No images are drawn: {_text(findings.no_images)}.</p>"
        return words + _table(_exposed_table(findings, exposed, 2 * SHOWN)) + scores
    total = exposed.order.size
    return (
        f"{words}<h3>Most exposed</h3>{_cards(findings, exposed, most, range(1, total + 1))}"
        f"<h3>Least exposed</h3>{_cards(findings, exposed, least, range(total, 0, -1))}"
        + _details(
            f"The {min(4 * SHOWN, total)} most exposed as a table",
            _table(_exposed_table(findings, exposed, 4 * SHOWN)),
        )
        + scores
    )


def _median_words(about: Mapping[str, Any]) -> str:
    median = about.get("d_median")
    return "" if median is None else f", {median:.2f} at the median"


def _label(findings: Findings, example: int) -> str:
    labels, classes = findings.score_set.labels, findings.classes
    if labels is None:
        return ""
    label = int(labels[example])
    if classes is not None and label < len(classes):
        return classes[label]
    return f"class {label}"


def _cards(
    findings: Findings, exposed: Vulnerability, examples: np.ndarray, ranks: Iterable[int]
) -> str:
    assert findings.images is not None
    cards = []
    for example, rank in zip(map(int, examples), ranks, strict=False):
        label = _label(findings, example)
        words = f"example {example}" + (f", labelled {label}" if label else "")
        success = share_cell(
            float(exposed.success[example]),
            (float(exposed.success_lo[example]), float(exposed.success_hi[example])),
        )
        if findings.score_set.canary is not None and findings.score_set.canary[example]:
            label, words = f"{label} (canary)".strip(), f"{words}, a canary"
        cards.append(
            f'<li><img src="{_image(findings.images[example])}" alt="{escape(words)}">'
            f"<b>{_text(label or words)}</b>rank {rank:,} · no. {example}<br>"
            f"d {exposed.d[example]:.2f}<br>success {success.text}\u00a0% "
            f"<small>({success.interval})</small></li>"
        )
    return f'<ol class="cards">{"".join(cards)}</ol>'


def _image(image: np.ndarray) -> str:
    """An image [H, W, C] as a PNG to inline, small ones pixel by pixel."""
    from PIL import Image

    shown = Image.fromarray(np.ascontiguousarray(picture(image)))
    shown.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
    file = io.BytesIO()
    shown.save(file, "png", optimize=True)
    return _data_uri("image/png", file.getvalue())


def _exposed_table(findings: Findings, exposed: Vulnerability, count: int) -> Table:
    rows = []
    for rank, example in enumerate(map(int, exposed.order[:count]), start=1):
        interval = (float(exposed.success_lo[example]), float(exposed.success_hi[example]))
        rows.append(
            (
                Cell(str(example)),
                Cell(_label(findings, example) or "–"),
                Cell(str(rank)),
                share_cell(float(exposed.success[example]), interval),
                Cell(f"{exposed.d[example]:.2f}"),
                Cell(_signed(exposed.mean_log_ratio_in[example])),
                Cell(_signed(exposed.mean_log_ratio_out[example])),
            )
        )
    heads = ("example", "label", "rank", "success, %", "d", "mean score as IN", "as OUT")
    return Table("Most exposed examples first", heads, tuple(rows), words=2)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _ablation(findings: Findings) -> str:
    table = ablation_table(findings.metrics)
    if table is None:
        return "<p>The ladders were not run.</p>"
    return (
        "<p>What each part of the attack adds. The first ladder has one threshold for all "
        "examples; in the second each example has its own, from models that did not train on it; "
        "in the third, from models that did and did not.</p>" + _table(table)
    )


def _label_only(findings: Findings, drawn: Mapping[str, Drawing]) -> str:
    found = findings.metrics.get("label_only")
    if not found:
        return (
            "<p>What can be told from labels alone was not asked of the models; to ask: "
            f"<code>{_LABEL_ONLY}</code>, and then attack again.</p>"
        )
    sources, targets = found["sources"], found["targets"]
    words = (
        "<p>These attacks see no confidence, only the label that a model gives to an image and to "
        "changed copies of it. Thresholds, kinds of copies and attack networks are tuned on "
        f"{len(sources)} source model{'s' * (len(sources) != 1)}, which the attacker owns, and the "
        f"figures are of {len(targets)} target{'s' * (len(targets) != 1)} in {found['blocks']} "
        f"block{'s' * (found['blocks'] != 1)}, on at most {found['examples']:,} examples. Beside "
        "them, tuned and judged in the same way, are attacks that see confidences: "
        "<code>confidence</code> the largest one, whatever its class; under MemGuard, which serves "
        "the same confidences for every image, nothing is left to it, while labels stay as they "
        "are. <code>confidence-true-label</code> knows the right class too; under MemGuard it "
        "would be <code>gap</code>. Shaded: the label-only attack that is strongest on the source "
        "models.</p>"
    )
    names = [entry["name"] for entry in found["attacks"]]
    strongest = names.index(found["strongest"]) if found["strongest"] else None
    table = label_only_table(findings.metrics)
    assert table is not None
    body = words + _table(table, strongest) + _tuned(found)
    body += _figures(drawn, "label_only_roc", "label_only_distances", "label_only_queries")
    budgets = budget_table(findings.metrics)
    if budgets is not None:
        body += _details("By the number of queries, as a table", _table(budgets))
    body += _outliers(findings)
    if found["not_run"]:
        rows = tuple(
            (Cell(_title(entry), code=entry["name"]), Cell(entry["reason"]))
            for entry in found["not_run"]
        )
        body += _table(Table("Not run", ("attack", "why"), rows, words=2))
    return body


def _tuned(found: Mapping[str, Any]) -> str:
    """What each attack tuned, and how well it then does on the models it tuned it on."""
    rows = tuple(
        (
            Cell(_title(entry), code=entry["name"]),
            Cell(entry["chosen"] or "–"),
            share_cell(entry["source_balanced_accuracy"], None),
            *(share_cell(entry["decision"][key], None) for key in ("balanced_accuracy", "tpr")),
            share_cell(entry["decision"]["fpr"], None),
            Cell(f"{entry['examples']:,}"),
        )
        for entry in found["attacks"]
    )
    heads = (
        "attack", "tuned beside the threshold", "balanced accuracy on sources", "on targets",
        "members found", "falsely accused", "examples",
    )  # fmt: skip
    return _details(
        "What was tuned, and what the decisions come to",
        _table(Table("Decisions by thresholds from the source models: percent", heads, rows, 2)),
    )


def _outliers(findings: Findings) -> str:
    table = outlier_table(findings.metrics)
    if table is None:
        return ""
    found = findings.metrics["label_only"]["outliers"]
    words = (
        f"<h3>Outliers</h3><p>The {len(found['examples']):,} most isolated examples "
        f"({100 * outliers.SHARE:g}\u00a0% of all, but at least {outliers.LEAST}), by the last "
        "layer's inputs under the source models: neighbours are examples within a cosine distance "
        f"δ that {100 * found['near']:g}\u00a0% of all pairs lie within "
        f"({', '.join(f'{delta:.3g}' for delta in found['delta'])}). Outliers have "
        f"{found['neighbours']:.3g} on average, all examples {found['neighbours_of_all']:.3g}. The "
        "decisions are those above; the question is whether an accusation is surer where the "
        "example is unlike all others.</p>"
    )
    return words + _table(table)


def _trust(findings: Findings, drawn: Mapping[str, Drawing]) -> str:
    found = findings.metrics.get("trust")
    if not found:
        return (
            "<p>What models predict on inputs from elsewhere, such as noise, and by a Laplace "
            f"approximation, is not known; to score it: <code>{_TRUST}</code>, and then attack "
            "again.</p>"
        )
    words = (
        "<p>These attacks see all prediction scores of an input. Each threshold and attack network "
        "is tuned on one other model, of which the attacker knows all, and used on "
        f"{found['targets']} targets in {found['blocks']} blocks; with another source model a "
        "threshold could differ. Members are told from examples that the target did not train on, "
        "and from inputs that no model trained on. These are compared with as many OUT models as "
        "an example is. Where inputs have no label, LiRA is asked about the class that the target "
        "predicts, and the label-only gap is not asked.</p>"
    )
    plain, *others = found["calibrations"]
    body = words
    table, every = trust_fpr_table(findings.metrics), trust_inputs_table(findings.metrics)
    low = trust_fpr_table(findings.metrics, "0.001")
    if table is not None and low is not None and every is not None:
        body += f"<p>{_text(_nonsense(found))}</p>" + _table(table)
        body += _details("By a threshold for few false positives", _table(low))
        body += _details("Every figure by kind of inputs", _table(every))
        body += _figures(drawn, "trust_inputs", "trust_fpr")
    errors, attacks = (
        calibration_table(findings.metrics),
        calibrated_attacks_table(findings.metrics),
    )
    assert errors is not None
    assert attacks is not None
    body += f"<h3>Calibration</h3><p>{_text(_calibrated(plain, others))}</p>" + _table(errors)
    body += _details("Attacks under each calibration", _table(attacks))
    body += _figures(drawn, "trust_trade_off", "trust_reliability")
    if found["not_run"]:
        rows = tuple((Cell(one["title"]), Cell(one["reason"])) for one in found["not_run"])
        body += _table(Table("Not run", ("calibration", "why"), rows, words=2))
    return body


def _nonsense(found: Mapping[str, Any]) -> str:
    """False positives, on examples and on the kind of inputs that fools the maximum score most."""
    by_name = {one["name"]: one for one in found["calibrations"][0]["attacks"]}
    titles = {kind["name"]: kind["title"] for kind in found["kinds"]}
    one, each = by_name["max-score"], by_name["max-score-calibrated"]
    worst, worst_of_each = (
        max(entry["inputs"], key=lambda judged: judged["decision"]["fpr"]) for entry in (one, each)
    )
    same = next(judged for judged in each["inputs"] if judged["kind"] == worst["kind"])

    def fpr(judged: Mapping[str, Any]) -> str:
        return _rate(judged["decision"]["fpr"], judged["decision"]["fpr_ci"])

    low, low_same = worst["low"]["0.001"], same["low"]["0.001"]
    words = (
        f"One threshold on the maximum score calls {fpr(one)} of other examples members, and "
        f"{fpr(worst)} of what fools it most: {titles[worst['kind']]}. Even where at most 0.1 % of "
        f"the source model's non-members reach the threshold, these inputs do so in "
        f"{_rate(low['fpr'], low['fpr_ci'])} of cases. Compared, input by input, with what other "
        f"models say of the same one, the maximum score calls {fpr(each)} of other examples "
        f"members, {fpr(same)} of these inputs, and at the most {fpr(worst_of_each)}, of "
        f"{titles[worst_of_each['kind']]}; by its threshold that at most 0.1 % of non-members "
        f"reach, {_rate(low_same['fpr'], low_same['fpr_ci'])} of {titles[worst['kind']]}."
    )
    mmps = one["mmps"]
    if mmps["fp"] and mmps["tp"]:
        apart = difference_cell(mmps["fp_less_tp"]["mean"], mmps["fp_less_tp"]["ci"])
        words += (
            " How far a false accusation could be seen by how sure the target is: the mean maximum "
            f"prediction score of false positives is {percent(mmps['fp']['mean'])} %, that of true "
            f"positives {percent(mmps['tp']['mean'])} %, a difference of {apart.text} points "
            f"({apart.interval})."
        )
    return words


def _calibrated(plain: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """What the best calibration changes, of the models and of the attacks on them."""

    def error(one: Mapping[str, Any]) -> str:
        return _rate(one["nonmembers"]["ece"], one["nonmembers"]["ece_ci"])

    def auroc(one: Mapping[str, Any], name: str) -> str:
        entry = next(entry for entry in one["attacks"] if entry["name"] == name)
        return _rate(entry["auc"], entry["auc_ci"])

    words = (
        "On examples that a model did not train on, confidence and accuracy differ by "
        f"{error(plain)}, the expected calibration error (ECE)"
    )
    if not others:
        return f"{words}."
    best = min(others, key=lambda one: one["nonmembers"]["ece"])
    return (
        f"{words}; the least by a calibration after training is {error(best)}, with "
        f"{best['title']}. The maximum score's AUROC is then {auroc(best, 'max-score')}, and "
        f"{auroc(plain, 'max-score')} without; online LiRA's {auroc(best, 'lira-online')}, and "
        f"{auroc(plain, 'lira-online')}. Label smoothing and L2, which change training, make other "
        "runs; attack.py compare sets those beside this one."
    )


def _budgets(findings: Findings, drawn: Mapping[str, Drawing]) -> str:
    body = _figures(drawn, "by_models", "by_queries")
    for field, by, head in (
        ("by_models", "models", "shadow models"),
        ("by_queries", "queries", "views"),
    ):
        entries = findings.metrics.get(field)
        if entries:
            rows = [
                (Cell(entry["name"]), Cell(str(entry[by])), *attack_cells(_less_accuracy(entry)))
                for entry in entries
            ]
            table = Table(
                f"By number of {head}: percent, 95 % interval in brackets",
                ("attack", head, "AUC", *attack_heads()),
                tuple(rows),
            )
            body += _details(f"Numbers of {head}", _table(table))
    return body or "<p>Not run.</p>"


def _less_accuracy(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "balanced_accuracy"}


def _thresholds(findings: Findings) -> str:
    entries = [e for e in findings.metrics["attacks"] if e.get("shadow_threshold")]
    if not entries:
        return "<p>Thresholds were not chosen on shadow models here.</p>"
    telling = telling_fpr(findings.metrics) or "0.01"
    words = (
        "<p>A real attacker does not know the target's ROC. Here each threshold is chosen on the "
        "shadow models alone, to reach the stated false-positive rate there, and then used on the "
        "target. Precision is the share of accusations that are right where the prior is the share "
        "of members among all candidates; – where nothing was accused.</p>"
    )
    tables = {key: _table(_threshold_table(entries, key)) for key in FPRS}
    others = "".join(tables[key] for key in FPRS if key != telling)
    return words + tables[telling] + _details("Other false-positive rates", others)


def _threshold_table(entries: Sequence[Mapping[str, Any]], key: str) -> Table:
    rows = []
    for entry in entries:
        reached = entry["shadow_threshold"].get(key)
        if reached is None:
            continue
        precision = reached.get("precision") or {}
        rows.append(
            (
                Cell(_title(entry), code=entry["name"]),
                share_cell(reached["fpr"], reached.get("fpr_ci")),
                share_cell(reached["tpr"], reached.get("tpr_ci"), is_few(entry, key)),
                *(share_cell(precision.get(prior), None) for prior in ("0.5", "0.1", "0.01")),
            )
        )
    heads = (
        "attack",
        "FPR reached",
        "TPR reached",
        "precision, prior ½",
        "precision, prior 10 %",
        "precision, prior 1 %",
    )
    notes = (f"* {FEW}",) if any(cell.few for row in rows for cell in row) else ()
    caption = f"Aimed at {fpr_text(key)} FPR: percent, 95 % interval"
    return Table(caption, heads, tuple(rows), notes=notes)


def _accuracy(findings: Findings, drawn: Mapping[str, Drawing]) -> str:
    accuracy = findings.metrics.get("accuracy")
    if not accuracy:
        return "<p>Accuracy needs logits and labels, which these scores came without.</p>"
    columns = [np.array([float(row[side]) for row in accuracy]) for side in _SIDES]
    columns.append(columns[0] - columns[1])
    names = ("trained on", "held out", "gap")
    rows = [
        (Cell(name), *(Cell(f"{100 * value:.2f}") for value in _five(values)))
        for name, values in zip(names, columns, strict=True)
    ]
    summary = Table(
        f"Accuracy of {len(accuracy)} models, percent",
        ("", "mean", "standard deviation", "least", "median", "greatest"),
        tuple(rows),
    )
    each = Table(
        "Accuracy of each model, percent",
        ("model", *names),
        tuple(
            (
                Cell(str(row["model"])),
                *(Cell(f"{100 * float(column[place]):.2f}") for column in columns),
            )
            for place, row in enumerate(accuracy)
        ),
    )
    return (
        f'<div class="figures">{_figure(drawn["accuracy"]) if "accuracy" in drawn else ""}'
        f"<div>{_table(summary)}</div></div>" + _details("Every model", _table(each))
    )


def _five(values: np.ndarray) -> tuple[float, ...]:
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return (
        float(values.mean()),
        spread,
        float(values.min()),
        float(np.median(values)),
        float(values.max()),
    )


def _epsilon(findings: Findings) -> str:
    bound = findings.metrics.get("epsilon")
    words = (
        "<p>Differential privacy with a small ε rules strong attacks out. So what the attack found "
        "bounds from below the ε with which training can have been private.</p>"
    )
    if not bound:
        return f"{words}<p>Not computed.</p>"
    if bound.get("reason"):
        return f"{words}<p>{_text(_sentence(str(bound['reason'])))}</p>"
    body = _bound(bound, "all examples")
    if bound.get("of_canaries"):
        body += _bound(bound["of_canaries"], "the inserted canaries")
    facts = {
        "Attack": f"{bound.get('attack', '')}, the strongest of {bound['candidates']}",
        "Method": str(bound["method"]),
    }
    return words + body + _list(facts)


def _bound(bound: Mapping[str, Any], of_what: str) -> str:
    """One bound in words."""
    if bound.get("reason"):
        return f"<p>{_text(_sentence(str(bound['reason'])))}</p>"
    return (
        f"<p>From {of_what}: <b>ε ≥ {bound['epsilon']:.2f}</b> at "
        f"{100 * bound['confidence']:.4g}\u00a0% confidence, with δ = {bound['delta']:g}; "
        f"{bound['canaries']:,} points can show {bound['ceiling']:.2f} at most. Were all decisions "
        f"independent (Clopper and Pearson), it would be {bound['clopper_pearson']:.2f}.</p>"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ")")) else ".")


def _canaries(findings: Findings) -> str:
    entries = findings.metrics.get("canary_attacks")
    if not entries:
        return (
            "<p>None were inserted. <code>[data] canaries = n</code> adds n points made to be "
            "memorised, and they are reported here, apart from the rest.</p>"
        )
    return (
        "<p>Points inserted to be memorised: what is found here bounds what the worst real example "
        f"may suffer. They are left out of the figures above, but the attacks saw them among all "
        f"examples, and they have their ranks in vulnerability.csv.</p>"
        f"{_table(main_table(findings.metrics, 'canary_attacks'))}"
    )


def _null_check(findings: Findings) -> str:
    words = (
        "<p>Scores drawn without any leakage go through every attack, with this run's own masks; "
        "each attack must then be at chance within its error.</p>"
    )
    check = findings.metrics.get("null_check")
    if not check:
        return f"{words}<p>Not run; to run it: <code>{_NULL_CHECK}</code>.</p>"
    failed = [str(one["name"]) for one in check["attacks"] if not one["ok"]]
    found = f"Not at chance: {', '.join(failed)}." if failed else "Every attack is at chance."
    keys = {"auc": "AUC", "tpr_at_0.001": "TPR, 0.1 % accused", "tpr_at_0.01": "TPR, 1 % accused"}
    rows = [
        (
            Cell(one["name"], code=one["name"]),
            *(_beside_chance(one.get(key)) for key in keys),
            Cell("yes" if one["ok"] else "NO"),
        )
        for one in check["attacks"]
    ]
    table = Table(
        "Percent ± standard error, chance in brackets",
        ("attack", *keys.values(), "at chance"),
        tuple(rows),
    )
    rest = {key: value for key, value in check.items() if key not in ("attacks", "ok")}
    return f"{words}<p><b>{_text(found)}</b></p>{_details('In figures', _table(table))}" + _details(
        "How it was drawn", _anything(rest)
    )


def _beside_chance(figure: Mapping[str, Any] | None) -> Cell:
    if not figure or figure.get("value") is None:
        return Cell("–")
    error = f" ± {100 * figure['error']:.2f}" if figure.get("error") is not None else ""
    return Cell(f"{100 * figure['value']:.2f}{error}", f"{100 * figure['chance']:.2f}")


def _missing(findings: Findings, missing: Sequence[Missing]) -> str:
    body = ""
    not_run = findings.metrics.get("not_run") or ()
    if not_run:
        rows = tuple(
            (Cell(_title(entry), code=entry["name"]), Cell(entry["reason"])) for entry in not_run
        )
        body += _table(Table("Attacks that were not run", ("attack", "why"), rows, words=2))
    if missing:
        lines = tuple(
            (Cell(" · ".join(filter(None, (one.paper, one.title)))), Cell(one.reason))
            for one in missing
        )
        body += _table(Table("Figures that were not drawn", ("figure", "why"), lines, 2))
    return body or "<p>Everything was run and drawn.</p>"


def _settings(findings: Findings) -> str:
    metrics = findings.metrics
    versions = metrics.get("versions") or {}
    line = ", ".join(f"{name} {version}" for name, version in versions.items())
    body = f"<p>{escape(line)}</p>" if line else ""
    settings = dict(metrics.get("settings") or {})
    settings |= {"source": metrics.get("source"), "protocol": metrics.get("protocol")}
    settings |= {"centre": metrics.get("centre")}
    rows = tuple((Cell(name), Cell(_value(value))) for name, value in settings.items())
    table = _table(Table("As in the run's config.toml", ("setting", "value"), rows, words=2))
    return body + _details("All settings", table)


def _sources() -> str:
    items = "".join(
        f"<li><b>{escape(name)}</b>: {escape(source)}.</li>" for name, source in _SOURCES.items()
    )
    return (
        f"<p>Please cite the papers whose attacks you report.</p><ul>{items}</ul>"
        '<p class="soft">Made by lira_jax.</p>'
    )


# HTML.


def _table(table: Table, strongest: int | None = None) -> str:
    def classes(column: int) -> str:
        return "words" if column < table.words else "number"

    heads = "".join(
        f'<th scope="col" class="{classes(column)}">{_text(head)}</th>'
        for column, head in enumerate(table.heads)
    )
    rows = []
    for place, row in enumerate(table.rows):
        kind = ' class="strongest"' if place == strongest else ""
        if table.words > 1 and place and row[0].text and not table.rows[place - 1][0].text:
            kind = ' class="part"'
        cells = [f'<th scope="row">{_cell(row[0])}</th>']
        cells += [
            f'<td class="{classes(column)}">{_cell(cell)}</td>'
            for column, cell in enumerate(row[1:], start=1)
        ]
        rows.append(f"<tr{kind}>{''.join(cells)}</tr>")
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in table.notes)
    # A box that scrolls must be reached by keyboard, and so have a name.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.caption)}">'
        f"<table><caption><span>{_text(table.caption)}</span></caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{notes}"
    )


def _cell(cell: Cell) -> str:
    text = _text(cell.text) + "<sup>*</sup>" * cell.few
    if cell.code:
        text = _swatch(cell.code) + text
        if cell.code != cell.text:
            text += f" <code>{escape(cell.code)}</code>"
    return f"{text} <small>({_text(cell.interval)})</small>" if cell.interval else text


_DASHES = {"-": "", "--": "5.6 2.4", ":": "1.5 2.5", "-.": "9.6 2.4 1.5 2.4"}


def _swatch(name: str) -> str:
    """The line that stands for the attack in every figure."""
    colour, line = style_of(name)
    return (
        '<svg class="swatch" width="30" height="8" aria-hidden="true">'
        f'<line x1="1" y1="4" x2="29" y2="4" stroke="{colour}" stroke-width="2"'
        f' stroke-dasharray="{_dashes(line)}"/></svg>'
    )


def _dashes(line: Line) -> str:
    if isinstance(line, str):
        return _DASHES[line]
    return " ".join(f"{1.5 * length:g}" for length in line[1])


def _figures(drawn: Mapping[str, Drawing], *names: str) -> str:
    figures = "".join(_figure(drawn[name]) for name in names if name in drawn)
    return f'<div class="figures">{figures}</div>' if figures else ""


def _figure(drawing: Drawing) -> str:
    title = escape(drawing.title)
    paper = f" ({_text(drawing.paper)} of the LiRA paper)" if drawing.paper else ""
    return (
        f'<figure id="figure-{drawing.name}"><img class="drawn" alt="{title}. '
        f'{escape(drawing.caption)}" src="{_data_uri("image/svg+xml", drawing.svg)}">'
        f"<figcaption><b>{title}</b>{paper}. {_text(drawing.caption)}</figcaption></figure>"
    )


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _text(text: str) -> str:
    """Text as HTML; a number and its % stay on one line."""
    return escape(text).replace(" %", "\u00a0%")


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def _list(facts: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts.items())
    return f"<dl>{items}</dl>"


def _anything(value: Mapping[str, Any], name: str = "Results") -> str:
    """Figures of any form: plain values as a list, lists of records as tables."""
    plain = {key: _value(v) for key, v in value.items() if not isinstance(v, Mapping | list)}
    body = _list({_in_words(key): text for key, text in plain.items()}) if plain else ""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            body += f"<h3>{escape(_in_words(key))}</h3>{_anything(inner, key)}"
        elif isinstance(inner, list) and inner and all(isinstance(one, Mapping) for one in inner):
            heads = list(dict.fromkeys(head for one in inner for head in one))
            rows = tuple(tuple(Cell(_value(one.get(head))) for head in heads) for one in inner)
            caption = _in_words(key)
            body += _table(Table(caption, tuple(map(_in_words, heads)), rows))
        elif isinstance(inner, list):
            body += _list({_in_words(key): ", ".join(map(_value, inner))})
    return body


def _in_words(key: str) -> str:
    return str(key).replace("_", " ")


def _value(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_in_words(key)}: {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return " – ".join(map(_value, value))
    return str(value)
