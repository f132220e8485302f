"""Rates in words: percent, false-positive rates, and which rates rest on few false positives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lira_jax.evaluation import FEW_FALSE_POSITIVES, FPRS

FEW_NOTE = f"fewer than {FEW_FALSE_POSITIVES} expected false positives behind this rate"
# The false-positive rates to judge by, the lower one where enough stands behind it.
TELLING = ("0.001", "0.01")


def percent(share: float) -> str:
    """A share in percent: two decimals below 10 %, one above."""
    return f"{100 * share:.2f}" if abs(share) < 0.09995 else f"{100 * share:.1f}"


def fpr_text(key: str) -> str:
    """A key of FPRS in percent: "0.1 %"."""
    return f"{100 * FPRS[key]:.3f}".rstrip("0").rstrip(".") + " %"


def share_text(value: float, interval: Sequence[float] | None, unit: str = "") -> str:
    """A share in percent and its interval: "10.0 % (9.30–11.7)", if the unit is " %"."""
    ends = f" ({percent(interval[0])}–{percent(interval[1])})" if interval else ""
    return f"{percent(value)}{unit}{ends}"


def points_text(value: float) -> str:
    """A difference of two shares in percentage points, with its sign: "−1.2"."""
    # Rounded first, so that what is shown as 0 has no sign.
    points = round(100 * value, 1)
    return f"{points:+.1f}".replace("-", "−") if points else "0.0"


def tpr(entry: Mapping[str, Any], key: str) -> tuple[float, Sequence[float] | None]:
    """An attack's TPR at the FPR of that key, and its interval, if there is one."""
    return entry["tpr_at_fpr"][key], (entry.get("tpr_at_fpr_ci") or {}).get(key)


def is_few(entry: Mapping[str, Any], key: str) -> bool:
    """Does the entry's TPR rest on fewer than FEW_FALSE_POSITIVES expected false positives?"""
    return bool((entry.get("few_false_positives") or {}).get(key, False))


def telling_fpr(metrics: Mapping[str, Any]) -> str | None:
    """The key of the rate to judge by: 0.1 %, or 1 % where too few false positives stand behind it.

    None where too few stand behind both.
    """
    for key in TELLING:
        if not any(is_few(entry, key) for entry in metrics["attacks"]):
            return key
    return None
