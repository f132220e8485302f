"""The fastest of a few ways to do the same work on these devices, found by measuring them.

How many models to vectorise, and how their gradients are best written, differs between cards,
networks, batches and types by factors (docs/benchmarks.md), and no rule tells. So where a setting
leaves it open, candidates do the run's own work for a second or two each. Their programs are
compiled side by side, which takes most of the time, and the answer is remembered beside the
compiled programs.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from lira_jax.errors import InputError
from lira_jax.progress import say
from lira_jax.storage import as_path, write_text

Choice = TypeVar("Choice", bound=Hashable)

# How long each candidate is measured, once compiled and warm [s].
SECONDS = 1.5


@dataclass(frozen=True)
class Trial:
    """A candidate whose programs are compiled.

    Attributes:
        run: does so many units of work, and returns once the devices have done them.
        work: of a unit, in what all candidates count in, such as model-steps or images.
        most: units that one call can do.
    """

    run: Callable[[int], None]
    work: float
    most: int


def rates(
    candidates: Mapping[Choice, Callable[[], Trial]],
    check: Callable[[], None] = lambda: None,
    seconds: float = SECONDS,
) -> tuple[dict[Choice, float], dict[Choice, JaxRuntimeError]]:
    """Work per second of each candidate, and why some have none.

    Args:
        candidates: functions that compile each, called in a thread each.
        check: called between measurements; may raise.
        seconds: how long to measure each.

    Returns:
        Rates of the candidates that ran, and the errors of the others: most of all, too little
        memory.
    """
    found: dict[Choice, float] = {}
    failed: dict[Choice, JaxRuntimeError] = {}
    with ThreadPoolExecutor(len(candidates)) as pool:
        compiling = {choice: pool.submit(make) for choice, make in candidates.items()}
        # None is measured while others still compile: compilers use the devices, too.
        pool.shutdown(wait=True)
    for choice in list(compiling):
        check()
        try:
            # Its arrays go with it, before the next makes its own.
            found[choice] = _rate(compiling.pop(choice).result(), seconds, check)
        except JaxRuntimeError as error:
            failed[choice] = error.with_traceback(None)  # which would keep arrays on the device
    return found, failed


def _rate(trial: Trial, seconds: float, check: Callable[[], None]) -> float:
    """Median work per second over calls of about a quarter of the time, after a first unit."""
    trial.run(1)
    measured, spent, units = [], 0.0, 1
    while spent < seconds:
        check()
        start = time.perf_counter()
        trial.run(units)
        lasted = max(time.perf_counter() - start, 1e-9)
        spent += lasted
        measured.append((units, units * trial.work / lasted))
        units = min(trial.most, max(units, int(units * seconds / 4 / lasted)))
    longest = max(units for units, _ in measured)
    return statistics.median(rate for units, rate in measured if units == longest)


def fastest(
    candidates: Mapping[Choice, Callable[[], Trial]],
    about: Mapping[str, Any],
    mesh: Mesh,
    where: str,
    unit: str,
    check: Callable[[], None] = lambda: None,
) -> Choice:
    """The candidate that does most work per second, as remembered or as measured now.

    Args:
        candidates: as `rates` takes them, by what their `str` calls them.
        about: what the answer depends on, beside the devices and the version of JAX; plain values.
        mesh: devices.
        where: whose work it is, before the line that is printed.
        unit: of work, such as `model-steps`.
        check: as for `rates`.

    Raises:
        JaxRuntimeError: no candidate ran: the error of the last.
    """
    choices = list(candidates)
    if len(choices) == 1:
        return choices[0]
    about = {
        **about,
        "candidates": [str(choice) for choice in choices],
        "device": mesh.devices.flat[0].device_kind,
        "precision": jax.config.values["jax_default_matmul_precision"],
        "jax": jax.__version__,
    }
    names = {str(choice): choice for choice in choices}
    name = _remembered(about)
    if name in names:
        say(f"{where}: {name}, found fastest here before")
        return names[name]
    say(f"{where}: trying {len(choices)} ways to share the device, once")
    start = time.monotonic()
    found, failed = rates(candidates, check)
    if not found:
        raise list(failed.values())[-1]
    best = max(found, key=lambda choice: found[choice])
    tried = [f"{choice} {rate:,.0f}" for choice, rate in found.items() if choice != best]
    tried += [f"{choice} {_reason(error)}" for choice, error in failed.items()]
    say(
        f"{where}: {best}, {found[best]:,.0f} {unit}/s, is the fastest of {len(choices)} ways "
        f"tried in {time.monotonic() - start:.0f} s ({'; '.join(tried)})"
    )
    _remember(about, str(best), {str(choice): rate for choice, rate in found.items()})
    return best


def _reason(error: JaxRuntimeError) -> str:
    text = " ".join(str(error).split())
    return "does not fit into memory" if "RESOURCE_EXHAUSTED" in text else f"fails: {text[:80]}"


def _file(about: Mapping[str, Any]) -> Path | None:
    """Where the answer is kept; None where compiled programs are not kept either."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder:
        return None
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return as_path(folder) / f"lira_jax_fastest_{digest[:16]}.json"


def _remembered(about: Mapping[str, Any]) -> str | None:
    """The answer to this question; None where there is none that can be read."""
    # Whatever is wrong with it, it can be measured again.
    with suppress(OSError, ValueError, TypeError, KeyError, InputError):
        file = _file(about)
        kept = json.loads(file.read_text(encoding="utf-8")) if file is not None else None
        if kept and kept["about"] == json.loads(json.dumps(about)):
            return str(kept["fastest"])
    return None


def _remember(about: Mapping[str, Any], name: str, measured: Mapping[str, float]) -> None:
    kept = {"about": about, "fastest": name, "per_second": measured}
    try:
        file = _file(about)
        if file is not None:
            write_text(file, json.dumps(kept, indent=1) + "\n")
    except InputError as error:  # the answer serves this call all the same
        say(f"{error}", "stderr")


def up_to(most: int) -> Sequence[int]:
    """A few sizes to try: 1, 4, 16, … below `most`, and `most`."""
    sizes = [1]
    while sizes[-1] * 4 < most:
        sizes.append(sizes[-1] * 4)
    return sizes if most == 1 else [*sizes, most]
