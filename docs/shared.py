"""What the scripts of the pages of results share: reading runs, Markdown tables, filling a page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lira_jax.evaluation.wording import share_text
from lira_jax.report.tables import difference_cell

Entry = Mapping[str, Any]
# The false-positive rate at which TPRs are shown.
AT = "0.001"


def read(runs: Path, configs: Iterable[Path], part: str) -> dict[str, Entry]:
    """The results of the run of every configuration, by its name.

    Raises:
        SystemExit: results without the part that the page is about.
    """
    results_of = {}
    for path in sorted(configs):
        results = runs / path.stem / "attack" / "metrics.json"
        results_of[path.stem] = json.loads(results.read_text("utf-8"))
        if not results_of[path.stem].get(part):
            raise SystemExit(f"{results}: has no results in `{part}`; see {path}")
    return results_of


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Make anew what stands between the marks of a page that are named; other marks' parts stay.

    Raises:
        ValueError: a part whose mark is not there once.
    """
    text = page.read_text("utf-8")
    for name in parts:
        if text.count(f"<!-- {name} -->\n") != 1:
            raise ValueError(f"{page} should have <!-- {name} --> once")
    names = "|".join(map(re.escape, parts))
    pattern = re.compile(rf"(<!-- ({names}) -->\n).*?(<!-- end -->)", re.DOTALL)
    filled = pattern.sub(lambda mark: f"{mark[1]}\n{parts[mark[2]]}\n\n{mark[3]}", text)
    page.write_text(filled, "utf-8")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, the first column flush left."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def share(entry: Entry | None, key: str) -> str:
    """A figure and its interval in percent; a dash where there is none."""
    if entry is None or entry[key] is None:
        return "–"
    return share_text(entry[key], entry[f"{key}_ci"])


def rate(entry: Entry | None, key: str = AT) -> str:
    """The TPR at an FPR and its interval in percent, with a star where few false positives are."""
    if entry is None:
        return "–"
    mark = "\\*" if entry["few_false_positives"][key] else ""
    return share_text(entry["tpr_at_fpr"][key], entry["tpr_at_fpr_ci"][key], mark)


def points(value: float, interval: Sequence[float]) -> str:
    """A difference of shares and its interval, in percentage points."""
    return difference_cell(value, interval).whole
