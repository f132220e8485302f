"""The report: its verdict, that it stands alone and escapes what it is given, and how it looks."""

from __future__ import annotations

import base64
import copy
import dataclasses
import html
import io
import json
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from lira_jax.figures import Missing
from lira_jax.report import terminal
from lira_jax.report.page import SHOWN, verdict, write_report
from lira_jax.report.tables import percent
from tests import synthetic_findings
from tests.synthetic_findings import drawn, entry, findings, usual
from tests.trust import synthetic

CHROMIUM = shutil.which("chromium")
VOID = {"meta", "img", "br", "line"}
NASTY = '<script>alert("x")</script>&<img src=x onerror=alert(1)>\'"'


class Page(HTMLParser):
    """The elements of a page; fails where they are not well nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


@cache
def report():
    return write_report(usual(), drawn())


def without(found, **changes):
    """Findings with fields of the metrics replaced."""
    return dataclasses.replace(found, metrics=found.metrics | changes)


def judged(**attacks):
    """Findings of attacks given as (AUC, TPR at 0.1 %), each ± its half-widths."""
    entries = [
        {
            "name": name, "title": name, "targets": 1000, "auc": auc,
            "auc_ci": [auc - 0.01, auc + 0.01],
            "tpr_at_fpr": {"0.001": tpr, "0.01": 10 * tpr},
            "tpr_at_fpr_ci": {key: [0.8 * scale * tpr, 1.2 * scale * tpr]
                              for key, scale in (("0.001", 1), ("0.01", 10))},
            "few_false_positives": {"0.001": False, "0.01": False},
        }
        for name, (auc, tpr) in attacks.items()
    ]  # fmt: skip
    return dataclasses.replace(usual(), metrics={"attacks": entries}, vulnerability=None)


def test_stands_alone_in_one_file_below_five_megabytes():
    page = Page(report())
    assert len(report()) < 5e6
    links = [value for _, attributes in page.elements
             for name, value in attributes.items() if name in ("src", "href")]  # fmt: skip
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not page.all("script")
    assert not page.all("link")
    assert "url(" not in report()
    assert "@import" not in report()


def test_says_the_same_twice():
    assert write_report(usual(), drawn()) == report()


def test_has_headings_captions_alternative_texts_and_anchors_that_lead_somewhere():
    page = Page(report())
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) == len(page.all("section")) == 16
    assert len(page.all("caption")) == len(page.all("table")) > 10
    assert all(image["alt"] for image in page.all("img"))
    anchors = [link["href"][1:] for link in page.all("a")]
    assert anchors == [section["id"] for section in page.all("section")]
    assert all(box["aria-label"] for box in page.all("div") if box.get("class") == "scroll")
    assert page.all("html")[0]["lang"] == "en"


def test_shows_every_attack_figure_and_setting():
    page = Page(report())
    for one in usual().metrics["attacks"]:
        assert one["title"] in page.text
    for drawing in drawn():
        if isinstance(drawing, Missing):
            assert drawing.reason in page.text
        else:
            assert f'id="figure-{drawing.name}"' in report()
    for name in usual().metrics["settings"]:
        assert name in page.text
    for words in ("leave-block-out, blocks of 2", "numpy 2.4.6", "ε ≥ 2.31", "it needs <more>"):
        assert words in page.text


def test_draws_the_most_and_the_least_exposed_images_pixel_by_pixel():
    page = Page(report())
    cards = [image for image in page.all("img") if image["src"].startswith("data:image/png")]
    order = usual().vulnerability.order
    shown = [*order[:SHOWN], *order[::-1][:SHOWN]]
    assert len(cards) == len(shown)
    for image, example in zip(cards, shown, strict=True):
        assert image["alt"].startswith(f"example {example}, labelled ")
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))))
        np.testing.assert_array_equal(pixels, usual().images[example, :, :, 0])
    assert "image-rendering: pixelated" in report()


@pytest.mark.parametrize(("side", "channels"), [(32, 3), (32, 2), (256, 4)])
def test_draws_images_of_any_size_and_number_of_channels(side, channels):
    images = np.random.default_rng(0).integers(0, 256, (200, side, side, channels), dtype=np.uint8)
    text = write_report(dataclasses.replace(usual(), images=images), ())
    for image in Page(text).all("img"):
        shown = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        assert max(shown.size) == min(side, 96)


def test_whatever_comes_from_the_user_is_text():
    found = synthetic_findings.findings(models=8, examples=60, names=["lira-online", NASTY],
                                        classes=(NASTY,) * 10)  # fmt: skip
    for one in found.metrics["attacks"]:
        one["title"] = NASTY
    found = without(
        found, source=NASTY, rule=NASTY, settings={NASTY: NASTY, "data.name": NASTY},
        versions={NASTY: NASTY}, not_run=[{"name": NASTY, "title": NASTY, "reason": NASTY}],
        null_check={NASTY: NASTY, "list": [{NASTY: NASTY}], "attacks": [{"name": NASTY, "ok": 0}]},
        epsilon={"reason": NASTY},
        vulnerability={"attack": NASTY},
    )  # fmt: skip
    text = write_report(found, [Missing(NASTY, NASTY, NASTY, NASTY)])
    page = Page(text)
    assert not page.all("script")
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert NASTY in page.text
    assert html.escape(NASTY) in text


def test_stands_without_what_scores_made_elsewhere_do_not_bring():
    found = synthetic_findings.findings(models=8, examples=60, images=False, classes=None)
    bare = dataclasses.replace(found.score_set, labels=None, logits=None)
    for one in found.metrics["attacks"]:
        for key in ("shadow_threshold", "mean_over_targets", "title"):
            del one[key]
    none = dict.fromkeys(
        ("settings", "accuracy", "epsilon", "null_check", "canary_attacks", "ablation",
         "by_models", "by_queries", "vulnerability", "versions"))  # fmt: skip
    found = dataclasses.replace(without(found, **none), score_set=bare)
    page = Page(write_report(found, ()))
    assert "runs/synthetic" in page.text
    assert "python attack.py" in page.text
    assert not page.all("img")
    page = Page(write_report(dataclasses.replace(found, vulnerability=None), ()))
    assert "needs more than one model" in page.text


def test_a_leak_is_told_at_the_lowest_rate_that_stands():
    found = verdict(judged(weak=(0.6, 0.002), strong=(0.9, 0.1)))
    assert (found.level, found.attack) == ("leak", "strong")
    assert found.sentence == (
        "At a false-alarm rate of 1 in 1,000, the strongest of 2 attacks (strong) recognises "
        "10.0 % (8.00–12.0) of the training examples: about 100 times as many as guessing."
    )


def test_a_leak_that_shows_on_average_only_is_told_so():
    found = verdict(judged(a=(0.55, 0.0011), b=(0.52, 0.0012)))
    assert (found.level, found.attack) == ("average", "a")
    assert "no attack is surely better than guessing; but of one" in found.sentence
    assert "55.0 % (54.0–56.0) of cases, where guessing gives 50 %" in found.sentence


def test_too_few_models_never_give_the_all_clear_where_intervals_show_a_leak():
    found = findings(leak=1.0, models=4, examples=60, names=["lira-online", "yeom"])
    assert verdict(found).level == "open"
    assert "with 4 models attacked such an interval can be too narrow" in verdict(found).sentence


def test_canaries_that_are_told_are_in_the_verdict():
    found = findings(leak=3.0, models=16, examples=200, canaries=50, names=["lira-online"])
    quiet = judged(a=(0.505, 0.0011))
    told = dataclasses.replace(
        quiet,
        metrics={**quiet.metrics, "canary_attacks": found.metrics["canary_attacks"]},
    )
    assert verdict(quiet).level == "none"
    assert verdict(told).level == "canaries"
    assert "Of one inserted canary" in verdict(told).sentence


def test_no_leak_is_told_with_what_was_measured():
    found = verdict(judged(a=(0.505, 0.0011), b=(0.5, 0.0009)))
    assert (found.level, found.attack) == ("none", "a")
    assert found.sentence.startswith("No attack does better than guessing within its error")
    assert "0.11 % (0.09–0.13) of the training examples, where guessing gives 0.1 %" in (
        found.sentence
    )


def test_an_interval_just_above_chance_counts_for_one_attack_and_not_for_the_best_of_many():
    barely = (0.5, 0.00126)  # its interval begins at 0.00101
    assert verdict(judged(one=barely)).level == "leak"
    many = judged(**{f"attack{n}": barely for n in range(25)})
    assert verdict(many).level == "none"


def test_scores_without_leakage_give_no_leak():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        member = np.repeat(rng.random((16, 200)) < 0.5, 2, axis=0)
        member[1::2] = ~member[::2]
        entries = [entry(f"a{n}", rng.normal(size=member.shape), member) for n in range(6)]
        found = dataclasses.replace(usual(), metrics={"attacks": entries}, vulnerability=None)
        assert verdict(found).level == "none"


def test_scores_that_leak_give_a_leak_and_count_who_is_given_away():
    found = verdict(findings(leak=3.0, models=16, examples=200, names=["lira-online"]))
    assert found.level == "leak"
    assert "the attack (lira-online in words)" in found.sentence
    assert "of 200 examples under 90 % of the models or more" in found.sentence


def test_without_intervals_the_verdict_is_open():
    found = judged(a=(0.9, 0.1))
    for one in found.metrics["attacks"]:
        one |= {"auc_ci": None, "tpr_at_fpr_ci": {"0.001": None, "0.01": None}}
    assert verdict(found).level == "unknown"
    assert "cannot be said" in verdict(found).sentence


def test_canaries_are_not_counted_among_the_examples_given_away():
    found = findings(leak=3.0, models=16, examples=200, canaries=50, names=["lira-online"])
    assert "of 150 examples under 90 %" in verdict(found).sentence
    assert "(canary)" in Page(write_report(found, ())).text


def test_a_failed_null_check_names_the_attacks():
    check = {"attacks": [{"name": "yeom", "ok": True}, {"name": "watson", "ok": False}]}
    text = Page(write_report(without(usual(), null_check=check), ())).text
    assert "Not at chance: watson." in text
    assert "Every attack is at chance" in Page(report()).text


def test_an_interval_over_examples_alone_is_told_as_such():
    found = judged(a=(0.9, 0.1))
    found.metrics["attacks"][0]["over"] = "examples"
    assert verdict(found).sentence.endswith("the interval says nothing about others.")


def test_with_few_non_members_low_rates_are_not_judged():
    found = judged(a=(0.9, 0.1))
    found.metrics["attacks"][0]["few_false_positives"] = {"0.001": True, "0.01": True}
    assert verdict(found).sentence.startswith("There are too few non-members to judge low")
    found = judged(a=(0.5, 0.001))
    found.metrics["attacks"][0]["few_false_positives"] = {"0.001": True, "0.01": False}
    assert "1 in 100," in verdict(found).sentence


# How it looks.

# A window is at least 500 pixels wide, a frame is not. All is read when all has loaded.
FRAMES = """<!DOCTYPE html><meta charset="utf-8"><body>
<iframe src="report.html" width="390" height="900"></iframe>
<iframe src="report.html" width="1400" height="900"></iframe>
<script>
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, width = frame.contentWindow.innerWidth;
    const all = (selector) => [...page.querySelectorAll(selector)];
    for (const details of all("details")) details.open = true;
    const outside = all("body *").filter((one) => !one.closest(".scroll, svg")
      && one.getBoundingClientRect().right > width + 1);
    const line = document.createElement("pre");
    line.textContent = JSON.stringify({
      width, scroll: page.documentElement.scrollWidth,
      outside: outside.map((one) => one.outerHTML.slice(0, 80)),
      images: all("img").length,
      broken: all("img").filter((one) => !one.complete || !one.naturalWidth).map((one) => one.alt),
      hidden: all("img").filter((one) => one.getBoundingClientRect().width < 20).length,
      headings: all("h1, h2").map((one) => one.textContent),
    });
    document.body.append(line);
  }
});
</script></body>"""


def chromium(tmp_path, page):
    """The DOM of a page once it has loaded, and the lines of its console."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
         "--window-size=1800,1000", "--allow-file-access-from-files", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_looks_right_in_a_browser_narrow_and_wide(tmp_path):
    long = ("a_very_long_class_name_without_any_space_" * 4,) * 10
    found = dataclasses.replace(usual(), classes=long)
    text = write_report(found, drawn())
    (tmp_path / "report.html").write_text(text, "utf-8")
    (tmp_path / "frames.html").write_text(FRAMES, "utf-8")
    dom, console = chromium(tmp_path, tmp_path / "frames.html")
    assert console == []
    measured = [json.loads(html.unescape(one)) for one in re.findall(r"<pre>(.*?)</pre>", dom)]
    assert sorted(one["width"] for one in measured) == [390, 1400]
    for one in measured:
        assert one["outside"] == []
        assert one["scroll"] <= one["width"]
        assert one["broken"] == []
        assert one["hidden"] == 0
        assert one["images"] == text.count("<img ")
        assert one["headings"][0].startswith("Membership inference")
        assert {"All attacks", "Null check", "Settings and versions"} <= set(one["headings"])


def test_a_report_without_images_says_why():
    found = dataclasses.replace(findings(images=False), no_images="the data have moved <away>")
    assert "No images are drawn: the data have moved <away>." in Page(write_report(found, ())).text


# On trust.


def test_the_section_on_trust_tells_how_nonsense_is_taken_for_members():
    found = synthetic.findings()
    page = write_report(found, [])
    section = page.split('<section id="trust">')[1].split("</section>")[0]
    text = html.unescape(re.sub(r"<[^>]+>", " ", section)).replace("\u00a0", " ")
    plain, fitted = found.metrics["trust"]["calibrations"]
    largest = next(one for one in plain["attacks"] if one["name"] == "max-score")
    uniform = next(one for one in largest["inputs"] if one["kind"] == "uniform")
    assert f"{100 * uniform['decision']['fpr']:.1f} %" in text
    assert "what fools it most: uniform, in words" in text
    assert f"{100 * largest['mmps']['fp']['mean']:.1f} %, that of true positives" in text
    low, high = map(percent, fitted["nonmembers"]["ece_ci"])
    error = f"{percent(fitted['nonmembers']['ece'])} % ({low}–{high})"
    assert f"the least by a calibration after training is {error}, with T fitted." in text
    assert "Laplace, probit" in text
    assert "score.py --trust --trust.laplace True" in text


def test_the_section_on_trust_says_how_to_make_it_and_escapes_titles():
    page = write_report(usual(), [])
    assert "score.py --run DIR --trust" in page
    found = synthetic.findings()
    trust = found.metrics["trust"]
    kinds = [kind | {"title": NASTY} for kind in trust["kinds"]]
    nasty = found.metrics | {"trust": trust | {"kinds": kinds}}
    assert NASTY not in write_report(dataclasses.replace(found, metrics=nasty), [])


def test_the_terminal_names_what_fools_the_maximum_score_and_the_best_calibration(tmp_path):
    found = copy.deepcopy(dict(synthetic.findings().metrics))
    trust = found["trust"]
    trust["calibrations"][1]["nonmembers"] |= {"ece": 0.0123, "ece_ci": [0.01, 0.02]}
    text = terminal.summary(found, tmp_path)
    assert "Falsely called members, of uniform, in words: max-score 100.0 (" in text
    assert "Calibration error on non-members, by calibration: none " in text
    assert ", T fitted 1.23 (1.00–2.00)." in text
    assert "Not run: Laplace, probit, not predicted" in text
    bare = found | {"trust": trust | {"kinds": [], "calibrations": trust["calibrations"][:1]}}
    text = terminal.summary(bare, tmp_path)
    assert "Falsely called" not in text
    assert "T fitted" not in text
