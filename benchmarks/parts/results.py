"""What the parts of `one_accelerator.py` are asked and find: a line of JSON each. No JAX."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINES = "results.jsonl"
# Everything that a call may leave in its folder.
FILES = (LINES, "summary.md", "log.txt", "attack.zip", "scores_*.npz")

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """What a part is asked.

    Attributes:
        part: its name.
        out: folder for what it finds.
        data: folder of CIFAR-10's Parquet files; None for digits.
        scratch: folder for what it needs meanwhile.
        toy: tiny sizes.
        deadline: when it should have ended, as `time.monotonic` tells.
    """

    part: str
    out: Path
    data: Path | None
    scratch: Path
    toy: bool
    deadline: float

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.deadline - time.monotonic()

    def record(self, what: str, **values: Any) -> None:
        """Write one thing that was found, at once."""
        record(self.out, self.part, what, **values)


def record(out: Path, part: str, what: str, **values: Any) -> None:
    """Append a line to what was found, and print it."""
    line = json.dumps({"part": part, "what": what, **values}, ensure_ascii=False)
    with (out / LINES).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(line, flush=True)


def read(out: Path) -> list[dict[str, Any]]:
    """All that was found so far; a line cut by a kill is left out."""
    found = []
    path = out / LINES
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def of(found: Sequence[Found], part: str, what: str) -> list[Found]:
    """Those of one kind."""
    return [one for one in found if one["part"] == part and one["what"] == what]


def tests(log: str) -> dict[str, str]:
    """What pytest said of each test, read from what it printed with -vv, by itself or by
    pytest-xdist."""
    words = "PASSED|FAILED|ERROR|SKIPPED"
    said = dict(re.findall(rf"^(tests/\S+::.+?) ({words})", log, re.M))
    found = re.findall(rf"^\[gw\d+\].*? ({words}) (tests/\S+::.+?)\s*$", log, re.M)
    return said | {name: word for word, name in found}


def record_tests(out: Path, part: str, exit_code: int | None) -> None:
    """Record what the tests of `log.txt` said; exit code None: they did not end."""
    log = (out / "log.txt").read_text(encoding="utf-8", errors="replace")
    said = tests(log)
    bad = [name for name, word in said.items() if word in ("FAILED", "ERROR")]
    passed = sum(word == "PASSED" for word in said.values())
    record(out, part, "tests", passed=passed, failed=bad, finished=exit_code in (0, 1))
    ok = exit_code == 0 and passed > 0 and not bad
    reason = ""
    if not ok:
        ending = "did not end in time" if exit_code is None else f"ended with exit code {exit_code}"
        reason = "; ".join([f"pytest {ending}, {passed} passed", *bad])[:1500]
    record(out, part, "check", name="pytest -m accelerator", ok=ok, difference=float(len(bad)),
           tolerance=0.0, failure=reason)  # fmt: skip


def failures(found: Sequence[Found]) -> list[str]:
    """What failed, in words: parts, and differences beyond their tolerance."""
    words = []
    for one in found:
        if one["what"] == "part" and one["failure"]:
            words.append(f"{one['part']}: {one['failure']}")
        if one["what"] == "check" and not one["ok"]:
            reason = one.get("failure") or f"{one['difference']:.3g} > {one['tolerance']:.3g}"
            words.append(f"{one['part']}: {one['name']}: {reason}")
    return words
