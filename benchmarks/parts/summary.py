"""What was found, for people: tables in Markdown. No JAX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts import results
from benchmarks.parts.results import Found


def write(out: Path) -> None:
    """Write `summary.md` anew."""
    (out / "summary.md").write_text(text(results.read(out)) + "\n", encoding="utf-8")


def text(found: Sequence[Found]) -> str:
    """All tables for which something was found."""
    sections = [_machine(found), _right(found), _fast(found), _good(found), _headline(found)]
    sections.append(_shortfall(found))
    return "\n\n".join(filter(None, sections))


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; nothing of no rows."""
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _under(title: str, *parts: str) -> str:
    body = "\n\n".join(filter(None, parts))
    return f"## {title}\n\n{body}" if body else ""


def _machine(found: Sequence[Found]) -> str:
    words = []
    for one in results.of(found, "machine", "machine"):
        versions = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
        memory = f", {one['memory_bytes'] / 2**30:.0f} GiB" if one["memory_bytes"] else ""
        words.append(
            f"{one['devices']} × {one['device']} ({one['platform']}{memory}), "
            f"driver {one['driver'] or 'none'}, {one['cores']} CPU cores, "
            f"Python {one['python']}, {versions}"
        )
    for one in results.of(found, "machine", "matrix rate"):
        rate = f"{one['flops_per_second'] / 1e12:,.3g} TFLOP/s"
        words.append(f"Matrix product {one['size']}² in {one['dtype']}: {rate}")
    for one in results.of(found, "machine", "copy rate"):
        words.append(f"Copy: {one['bytes_per_second'] / 1e9:,.0f} GB/s read and written")
    return _under("Machine", "\n".join(f"- {line}" for line in words))


def _right(found: Sequence[Found]) -> str:
    rows = []
    for one in results.of(found, "right", "check"):
        if "difference" in one and not one.get("failure"):
            values = [f"{one['difference']:.2g}", f"{one['tolerance']:.2g}"]
        else:
            values = [one.get("failure", ""), ""]
        rows.append([one["name"], *values, "yes" if one["ok"] else "**no**"])
    tests = [
        f"`pytest -m accelerator`: {one['passed']} passed, {len(one['failed'])} failed"
        + ", stopped before their end" * (not one["finished"])
        + "".join(f"\n- failed: `{name}`" for name in one["failed"])
        if "passed" in one
        else f"`pytest -m accelerator`: left out, {one['left_out']}"
        for one in results.of(found, "right", "tests")
    ]
    return _under("Right", table(["check", "difference", "tolerance", "within"], rows), *tests)


def _fast(found: Sequence[Found]) -> str:
    rows = []
    peers = results.of(found, "fast", "torch")
    for one in results.of(found, "fast", "train"):
        gradients = one["gradients"] if one["width"] > 1 else "–"
        start = [one["network"], one["dtype"], one["batch"], f"width {one['width']}", gradients]
        if one["error"]:
            rows.append([*start, one["error"], "", "", ""])
            continue
        rows.append(
            [*start, f"{one['ms_per_model_step']:.3f}", f"{one['models_per_hour']:,.0f}",
             f"{one['flops_per_second'] / 1e12:.3g}", f"{one['utilisation']:.1%}"]
        )  # fmt: skip
    for one in peers:
        start = [one["case"], one["dtype"], one.get("batch", ""), f"PyTorch {one.get('way', '')}"]
        if one.get("ms_per_step"):
            rows.append(
                [*start, "–", f"{one['ms_per_step']:.3f}", f"{one['models_per_hour']:,.0f}", "", ""]
            )
        else:
            rows.append([*start, "–", one["error"], "", "", ""])
    order = {case: number for number, case in enumerate(dict.fromkeys(row[0] for row in rows))}
    rows.sort(key=lambda row: (order[row[0]], row[1]))  # what was timed beside each other
    heads = ["network", "type", "batch", "way", "gradients", "ms/model-step", "models/h",
             "TFLOP/s", "of the matrix rate"]  # fmt: skip
    scored = [
        [one["name"], f"{one['images_per_second']:,.0f}", f"{one['flops_per_second'] / 1e12:.3g}"]
        if "images_per_second" in one
        else [one["name"], one["error"], ""]
        for one in results.of(found, "fast", "score")
    ]
    return _under(
        "Fast", table(heads, rows), table(["SpeedNet, bfloat16", "images/s", "TFLOP/s"], scored)
    )


def _good(found: Sequence[Found]) -> str:
    rows = [
        [one["name"], f"{one['nonmember_accuracy']:.2%} ± {one['nonmember_deviation']:.2%}",
         f"{one['member_accuracy']:.2%}", f"{one['gap']:.2%}", f"{one['seconds_per_model']:.2f}"]
        for one in results.of(found, "good", "recipe")
    ]  # fmt: skip
    heads = ["recipe", "non-members", "members", "gap", "s per model, compiled"]
    return _under("Good", table(heads, rows))


def _headline(found: Sequence[Found]) -> str:
    parts = []
    for one in results.of(found, "headline", "result"):
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in one["stages"].items())
        parts.append(
            f"{one['models']} models × {one['examples']:,} examples × {one['views']} views in "
            f"{one['seconds']:.0f} s ({stages}), width {one['width']}: "
            f"{one['nonmember_accuracy']:.2%} on non-members, {one['member_accuracy']:.2%} on "
            "members"
        )
        rows = []
        for attack in one["attacks"]:
            intervals = [attack["auc_ci"], *(attack["ci"][key] for key in attack["ci"])]
            values = [attack["auc"], *(attack[key] for key in attack["ci"])]
            rows.append([f"`{attack['name']}`", *map(_percent, values, intervals)])
        rates = [f"TPR @ {float(key) * 100:g} %" for key in one["attacks"][0]["ci"]]
        parts.append(table(["attack", "AUC", *rates], rows))
    return _under("Headline", *parts)


def _percent(value: float, interval: Sequence[float] | None) -> str:
    between = f" ({100 * interval[0]:.2f}–{100 * interval[1]:.2f})" if interval else ""
    return f"{100 * value:.2f}{between}"


def _shortfall(found: Sequence[Found]) -> str:
    lines = [f"- failed: {words}" for words in results.failures(found)]
    for one in found:
        if one["what"] == "left out":
            what = {k: v for k, v in one.items() if k not in ("part", "what") and v is not None}
            named = ", ".join(f"{name} {value}" for name, value in what.items())
            lines.append(f"- left out: {one['part']}: {named or 'all'}")
    return _under("Failed and left out", "\n".join(lines))
