"""The report: its verdict, that it stands alone and escapes what it is given, and how it looks."""

from __future__ import annotations

import base64
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
from markupsafe import escape
from PIL import Image

from lira_jax.evaluation.wording import percent
from lira_jax.figures import Missing
from lira_jax.report.page import SHOWN, write_report
from tests import synthetic_findings
from tests.synthetic_findings import drawn, findings, usual
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
    exposed = dataclasses.replace(found.vulnerability, attack=NASTY)
    found = dataclasses.replace(found, vulnerability=exposed)
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
    assert escape(NASTY) in text


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


def test_a_failed_null_check_names_the_attacks():
    check = {"attacks": [{"name": "yeom", "ok": True}, {"name": "watson", "ok": False}]}
    text = Page(write_report(without(usual(), null_check=check), ())).text
    assert "Not at chance: watson." in text
    assert "Every attack is at chance" in Page(report()).text


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
