"""Bad inputs by the thousand.

`make fuzz`, or

    python -m tests.fuzz.run --count 10000 --seed 1
    python -m tests.fuzz.run --surface scores --seed 1 --number 17     one of them again, and why

Input NUMBER of a surface follows from the surface, the seed and the number alone; number 0 is the
undisturbed one, and must be read. Workers read the inputs; this process watches their time and
their memory, and a worker that dies takes the blame to its input.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from lira_jax.commands.entry import Ended
from lira_jax.errors import InputError
from tests.fuzz.toolbox import ANY, MATERIAL, REFUSE, WHOLE, Surface, differs

SECONDS = 20
BYTES = 2 * 10**9
OUTCOMES = ("refused", "read the same", "read", "failed")


class Result(NamedTuple):
    """What came of one input."""

    surface: str
    number: int
    outcome: str
    what: str = ""
    why: str = ""
    seconds: float = 0.0


class TooLong(BaseException):
    """No part of the program may catch it."""


def surfaces() -> dict[str, Surface]:
    """By name. What they import takes seconds."""
    from tests.fuzz import archives, configs, runs, scores

    every = [*configs.SURFACES, *scores.SURFACES, *archives.SURFACES, *runs.SURFACES]
    return {surface.name: surface for surface in every}


Source = Callable[[], dict[str, Surface]]


class Worker:
    """Reads inputs, in a folder of its own."""

    def __init__(self, folder: Path, seed: int, seconds: int, source: Source):
        self.folder, self.seed, self.seconds = folder, seed, seconds
        self.known = source()
        self.pristine: dict[str, Path] = {}
        self.expected: dict[str, Any] = {}
        quicken()

    def one(self, name: str, number: int, tell: Callable[[str], None]) -> Result:
        """Spoil an input, tell how, and have it read."""
        started = time.monotonic()
        surface, place = self.known[name], self.folder / "input"
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        if name not in self.pristine:
            self.pristine[name] = self.folder / "pristine" / name
            self.pristine[name].mkdir(parents=True)
            surface.make(self.pristine[name])
            self._copy(name, place)
            self.expected[name] = surface.read(place)
        self._copy(name, place)
        if number == 0:
            what, verdict = "undisturbed", "accept"
        else:
            spoilt = surface.spoil(Random(f"{name} {self.seed} {number}"), place)
            what, verdict = spoilt.what, spoilt.verdict
        tell(what)
        outcome, why = self._judged(surface, place, verdict)
        return Result(name, number, outcome, what, why, time.monotonic() - started)

    def _copy(self, name: str, place: Path) -> None:
        if place.is_symlink() or place.is_file():
            place.unlink()
        elif place.exists():
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        shutil.copytree(self.pristine[name], place)

    def _judged(self, surface: Surface, place: Path, verdict: str) -> tuple[str, str]:
        signal.alarm(self.seconds)
        try:
            values = surface.read(place)
        except InputError as error:
            message = str(error)
        except OSError as error:
            if error.filename is None:  # the command line has words for the others
                return "failed", traceback.format_exc()
            message = f"{error.filename}: {error.strerror}"
        except Ended as end:
            if end.code != 2:
                return "failed", f"ended with {end.code!r}\n{traceback.format_exc()}"
            message = "usage"
        except TooLong:
            return "failed", f"longer than {self.seconds} s\n{traceback.format_exc()}"
        except BaseException:
            return "failed", traceback.format_exc()
        else:
            name = differs(values, self.expected[surface.name])
            if verdict == REFUSE:
                return "failed", "accepted what is bad"
            if verdict != ANY and name:
                return "failed", f"accepted: `{name}` is not as undisturbed"
            return ("read", "") if name else ("read the same", "")
        finally:
            signal.alarm(0)
        if verdict == "accept":
            return "failed", f"refused what is fine: {message}"
        if not message.strip():
            return "failed", "refused without a word"
        return "refused", message


def quicken() -> None:
    """Figures are made, but not drawn, which takes most of the attack stage."""
    from matplotlib.figure import Figure

    def save(self: Figure, file: Any, *, format: str, **_: Any) -> None:
        file.write(f"a {format} of a figure".encode())

    Figure.draw_without_rendering = lambda self: None  # type: ignore[method-assign]
    Figure.savefig = save  # type: ignore[assignment,method-assign]
    warnings.simplefilter("ignore")


def work(pipe: Connection, folder: Path, *settings: Any) -> None:
    """The life of a worker: it is sent inputs, and sends back what came of them."""

    def late(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    (folder / "here").mkdir(parents=True)
    os.chdir(folder / "here")
    worker = Worker(folder, *settings)
    while True:
        name, number = pipe.recv()
        with (
            Path("printed").open("w", errors="backslashreplace") as file,  # as commands have it
            contextlib.redirect_stderr(file),
            contextlib.redirect_stdout(file),
        ):
            try:
                result = worker.one(name, number, pipe.send)
            except Exception:
                why = f"the fuzzer itself\n{traceback.format_exc()}"
                result = Result(name, number, "failed", "", why)
        pipe.send(result)


class Watched:
    """A worker as the watching process sees it."""

    def __init__(self, folder: Path, seed: int, seconds: int, source: Source):
        context = multiprocessing.get_context("spawn")
        self.folder, self.seconds = folder, seconds
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=work, args=(other, folder, seed, seconds, source), daemon=True
        )
        self.process.start()
        other.close()
        self.input: tuple[str, int] | None = None
        self.what, self.since = "", 0.0

    def give(self, what: tuple[str, int]) -> None:
        self.input, self.what, self.since = what, "", time.monotonic()
        self.pipe.send(what)

    def blame(self) -> str:
        """What is wrong with it; empty if nothing is."""
        if not self.process.is_alive():
            return f"the process ended with {self.process.exitcode}"
        if resident(self.process.pid) > BYTES:
            return f"more than {BYTES / 1e9:g} GB of memory"
        # Imports, and making what is spoilt, may take longer than reading it.
        if time.monotonic() - self.since > (self.seconds + 5 if self.what else 300):
            return f"longer than {self.seconds} s, where no signal reached it"
        return ""

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def resident(pid: int | None) -> int:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def results(
    inputs: list[tuple[str, int]],
    seed: int,
    workers: int,
    seconds: int = SECONDS,
    source: Source = surfaces,
) -> Iterator[Result]:
    """What comes of inputs, read by several processes."""
    waiting = list(reversed(inputs))
    with tempfile.TemporaryDirectory(prefix="lf") as scratch:
        names = iter(range(10**9))
        team = [
            Watched(Path(scratch) / str(next(names)), seed, seconds, source) for _ in range(workers)
        ]
        try:
            for one in team:
                if waiting:
                    one.give(waiting.pop())
            while busy := [one for one in team if one.input]:
                ready = wait([one.pipe for one in busy], timeout=0.05)
                for one in busy:
                    assert one.input
                    if one.pipe in ready:
                        try:
                            answer = one.pipe.recv()
                        except EOFError:
                            one.process.join()
                        else:
                            if isinstance(answer, str):
                                one.what, one.since = answer, time.monotonic()
                            else:
                                one.input = None
                                yield answer
                    if one.input and (why := one.blame()):
                        yield Result(
                            *one.input, "failed", one.what, why, time.monotonic() - one.since
                        )
                        one.end()
                        place = Path(scratch) / str(next(names))
                        team[team.index(one)] = one = Watched(place, seed, seconds, source)
                    if not one.input and waiting:
                        one.give(waiting.pop())
        finally:
            for one in team:
                one.end()


def shares(weights: dict[str, float], count: int) -> list[tuple[str, int]]:
    """As many inputs in all as asked for, each surface's after its undisturbed one."""
    total = sum(weights.values())
    amounts = {name: max(2, round(count * weight / total)) for name, weight in weights.items()}
    largest = max(amounts, key=lambda name: amounts[name])
    amounts[largest] += count - sum(amounts.values())
    order = [(name, number) for name, amount in amounts.items() for number in range(amount)]
    order.sort(key=lambda pair: (pair[1] / amounts[pair[0]], pair[0]))  # all kinds, from the start
    return order


def table(found: list[Result]) -> str:
    counts = Counter((each.surface, each.outcome) for each in found)
    rows = [("surface", "inputs", *OUTCOMES, "seconds")]
    for name in [*dict.fromkeys(each.surface for each in found), ""]:
        mine = [each for each in found if name in ("", each.surface)]
        numbers = [
            sum(n for (surface, o), n in counts.items() if o == outcome and name in ("", surface))
            for outcome in OUTCOMES
        ]
        seconds = f"{sum(each.seconds for each in mine):.0f}"
        rows.append((name or "all", str(len(mine)), *map(str, numbers), seconds))
    rows[1:-1] = sorted(rows[1:-1])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(description="Bad inputs by the thousand.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--surface", action="append", help="this one alone; may be given again")
    parser.add_argument("--number", type=int, help="this input alone, with what it is and why")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="that one input may take")
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs to be spoilt")
    chosen = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lira_jax_fuzz_") as folder:
        material = (chosen.runs or Path(folder)).absolute()
        os.environ[MATERIAL] = str(material)
        os.environ["JAXTYPING_DISABLE"] = "1"  # users have no checks of shapes
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(material / "compiled"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        if not (material / WHOLE).exists():
            material.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "tests.fuzz.runs", str(material)]
            subprocess.run(command, check=True, capture_output=True)
        weights = {name: surface.weight for name, surface in surfaces().items()}
        if chosen.surface:
            weights = {name: weights[name] for name in chosen.surface}
        inputs = shares(weights, chosen.count)
        if chosen.number is not None:
            inputs = [(name, chosen.number) for name in weights]
        found = []
        workers = min(chosen.workers, len(inputs))
        for each in results(inputs, chosen.seed, workers, chosen.seconds):
            found.append(each)
            if each.outcome == "failed" or chosen.number is not None:
                again = f"--surface {each.surface} --seed {chosen.seed} --number {each.number}"
                print(f"{each.outcome}: {again}\n  {each.what}\n  {each.why.strip()}", flush=True)
    failed = sum(each.outcome == "failed" for each in found)
    print(table(found))
    print(f"seed {chosen.seed}: {len(found)} inputs, {failed} failed, "
          f"{time.monotonic() - begun:.0f} s")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
