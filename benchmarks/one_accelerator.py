"""One accelerator, one command: is it right there, how fast, how good, and the whole experiment.

    python benchmarks/one_accelerator.py --minutes 9 --data FOLDER --out DIR
    python benchmarks/one_accelerator.py --minutes 9 --data FOLDER --out DIR --parts headline
    python benchmarks/one_accelerator.py --toy --out DIR      # every part, in minutes, anywhere

FOLDER holds CIFAR-10 as Parquet files of images. In order of value:

- machine: what it is; its rate in a large matrix product and in a copy;
- right: models on the CPU against the accelerator, widths against each other, a run killed and
  continued, the width that the engine finds by itself, the answers of every kind of scoring, and
  the tests that make sense there (`pytest -m accelerator`), differences beside their tolerances;
- fast: ms per model-step of SpeedNet, ResNet-8 and WRN28-2 by width and way of writing gradients
  (`accelerator.py`), PyTorch on the same card beside each (`torch_step.py`), and images per second
  of scoring;
- good: recipes of SpeedNet, four models each, then WRN28-2 by the paper's; accuracies;
- headline: `cifar10_fast.toml` in the best way found, as many of 256 models as fit into the time,
  18 views of 50,000 examples, and the attack, with the wall time of each stage.

Each part is a process of its own with a share of the time; what one leaves goes to the next. It
ends by itself in time: what does not fit is left out and named. DIR gets, the moment it is known:
`results.jsonl`, a line of JSON for everything found; `summary.md`, the same for people; `log.txt`,
all that was printed; `attack.zip`, tables, figures and report of the headline; `scores_*.npz`,
float16 scores of two views and masks, below 16 MB each. A kill loses what is in progress: one row,
one check, one stage. A part that fails is named, and the others go on; the exit code is then 1.

Of third parties this needs jax, flax, optax, numpy, scipy, scikit-learn, matplotlib, pyarrow,
pillow, jaxtyping, tqdm, jinja2, platformdirs and tomli_w; pytest with hypothesis, and PyTorch,
where their parts are wanted. No network: what a machine lacks of the last three, which are pure
Python, can be brought along (`pip install --target FOLDER tomli_w platformdirs jinja2`, and then
PYTHONPATH=FOLDER).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parts import results, summary

ROOT = Path(__file__).resolve().parents[1]
# The parts, and what share of the time each may take, if all those before it took theirs.
PARTS = {"machine": 4, "right": 17, "fast": 27, "good": 14, "headline": 38}
# What a part may take beyond its time to end by itself, before it is killed [s].
GRACE = 15.0
# Kept free for the last words [s].
LAST = 3.0


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it [minutes]")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 as Parquet files")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--toy", action="store_true", help="digits, tiny networks; a trial")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        parser.error(f"--minutes {args.minutes:g}: must be above 0")
    if args.data is None and not args.toy:
        parser.error("--data: give the folder of CIFAR-10's Parquet files, or --toy")
    if args.data is not None and not args.data.is_dir():
        parser.error(f"--data {args.data}: no such folder")
    return args


def environment(scratch: Path, toy: bool) -> dict[str, str]:
    """Of the parts: nothing is written outside of `scratch`, and JAX takes memory as it needs it,
    so that a part, its children and PyTorch can share a card. A trial compiles with fewer
    optimisations: its networks take a few steps."""
    cheap = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"} if toy else {}
    return (
        os.environ
        | cheap
        | {
            "XDG_CACHE_HOME": str(scratch / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(scratch / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "LIRA_JAX_TEST_CACHE": str(scratch / "programs"),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "MPLBACKEND": "agg",
        }
    )


def run_part(part: str, args: argparse.Namespace, scratch: Path, seconds: float) -> str:
    """Run one part in a process of its own, its output copied to the terminal and `log.txt`.

    Returns:
        Why it failed; empty if it did not.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part]
    command += ["--minutes", f"{seconds / 60:.4f}", "--out", str(args.out)]
    command += ["--scratch", str(scratch), *(["--toy"] if args.toy else [])]
    command += ["--data", str(args.data)] if args.data else []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(scratch, args.toy),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = process.stdout

    def copy() -> None:
        with lines, (args.out / "log.txt").open("a", encoding="utf-8") as log:
            for line in lines:
                print(line, end="", flush=True)
                log.write(line)
                log.flush()

    copying = threading.Thread(target=copy, daemon=True)
    copying.start()
    late = ""
    try:
        process.wait(seconds + GRACE)
    except subprocess.TimeoutExpired:
        late = f"killed {GRACE:.0f} s after its {seconds:.0f} s were over"
    finally:
        _end(process)
        copying.join(5)
    return late or (f"ended with exit code {process.returncode}" if process.returncode else "")


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a part and whatever it started, if any of it still runs."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; the exit code is 1 if one failed or a difference is beyond its tolerance."""
    args = options(argv)
    if args.part:
        return _child(args)
    began = time.monotonic()
    end = began + 60 * args.minutes - LAST
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name in results.FILES:
            for path in args.out.glob(name):
                path.unlink()
        (args.out / "log.txt").touch()
    except OSError as error:
        print(f"error: --out {args.out}: {error.strerror}; give a folder", file=sys.stderr)
        return 2
    asked = [part for part in PARTS if part in args.parts]
    stopped = ""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="one_accelerator_") as folder:
        for number, part in enumerate(asked):
            shares = sum(PARTS[later] for later in asked[number:])
            left = end - time.monotonic()
            seconds = left * PARTS[part] / shares - (GRACE if number + 1 == len(asked) else 0)
            if seconds < 5:
                results.record(args.out, part, "left out")
                continue
            print(f"\n=== {part}: {seconds:.0f} s of the {left:.0f} s left", flush=True)
            start = time.monotonic()
            try:
                failure = run_part(part, args, Path(folder), seconds)
            except (KeyboardInterrupt, SystemExit):
                failure = stopped = "stopped"
            lasted = round(time.monotonic() - start, 1)
            known = results.of(results.read(args.out), part, "tests")
            if part == "right" and failure and not known:
                results.record_tests(args.out, part, None)  # as far as they came
            results.record(args.out, part, "part", seconds=lasted, failure=failure)
            try:
                summary.write(args.out)
            except Exception as error:  # the parts that follow matter more
                print(f"summary.md: not written: {type(error).__name__}: {error}", flush=True)
            if stopped:
                break
    summary.write(args.out)
    found = results.read(args.out)
    print(f"\n{summary.text(found)}\nWritten to {args.out}: {', '.join(_files(args.out))}")
    print(f"{time.monotonic() - began:.0f} s of {60 * args.minutes:.0f} s")
    return 130 if stopped else int(bool(results.failures(found)))


def _files(out: Path) -> list[str]:
    return sorted(path.name for name in results.FILES for path in out.glob(name))


def _child(args: argparse.Namespace) -> int:
    """One part, in this process."""
    import importlib

    part = importlib.import_module(f"benchmarks.parts.{args.part}")
    part.run(
        results.Task(
            part=args.part,
            out=args.out.resolve(),
            data=args.data and args.data.resolve(),
            scratch=args.scratch or args.out / "scratch",
            toy=args.toy,
            deadline=time.monotonic() + 60 * args.minutes,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
