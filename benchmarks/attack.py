"""Seconds and memory of the attack stage at the paper's size, against a loop over examples.

    python benchmarks/attack.py

N = 256 models in blocks of 2, E = 50,000 examples, Q = 18 views: a 0.9 GB float32 score file, and
0.5 GB of logits, read by memory map, with all that any attack needs. Every model is a target,
attacked by the 254 models outside its block. Measured, each in a process of its own, in turn,
`--repeats` times:

- `lira`: the eight LiRA variants (online and offline; σ per example, global, pooled, shrunk), whose
  targets are 60 seconds and 4 GB of memory on 2 cores;
- `default`: hierarchical LiRA, online and offline;
- `attacks`: every family of attacks once, LiRA among them, nothing else;
- `judging`: every attack's scores judged, one attack after the other: curve, bootstrap, thresholds
  (in the process of `attacks`, and not in its seconds);
- `stage`: all that attack.py does: every attack, the ablation, bootstrap intervals, curves,
  figures, report. Its target is 120 seconds and 4 GB. Each part's seconds and the peak of the
  process's own memory within it are printed; attacks are judged while later ones are made, and
  stand together as one part;
- `loop`: the plain way, one Python step per target and example: pick the IN and OUT references, fit
  mean and standard deviation, SciPy's densities. Two variants only (σ per example). It is timed on
  `--loop-pairs` random pairs of target and example and scaled to all N·E pairs.

Memory is the largest resident set (ru_maxrss), which counts pages of the mapped file that the
system may drop at any time, and the largest part that is the process's own (RssAnon, sampled 20
times a second). The scores are Gaussians of known means and spreads; the loop's own results are
compared with the stage's, and the printed AUC with what the Gaussians give.

    python benchmarks/attack.py --models 16 --examples 500 --queries 2 --repeats 1   # a trial
    python benchmarks/attack.py --examples 320000 --queries 2 --repeats 1 --only lira default

The last takes scores and labels alone, so that no more is written.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import hardware
import numpy as np
from numpy.lib.format import open_memmap
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from lira_jax import attacking, figures
from lira_jax.analysis import analyse, budgets, exposure, outliers
from lira_jax.attacks import ATTACKS, lira, lira_bayes, references
from lira_jax.config import AttackConfig
from lira_jax.data import membership
from lira_jax.evaluation import judging
from lira_jax.report import files, page
from lira_jax.score_set import ScoreSet

BLOCK = 2
# Spread of a model's score on an example, and of its views around that; both in the example's unit.
BETWEEN_MODELS, BETWEEN_VIEWS = 0.9, 0.45
SHIFT = 1.0  # by which members are higher, in the same unit


CLASSES = 10
TASKS = ("lira", "default", "attacks", "stage", "loop")
# Those that need no more than scores and labels.
OF_SCORES = {"lira", "default", "loop"}
# The parts of the stage, one after the other: where each is called from, and its name there.
PARTS = {
    "checks": (analyse, "check"),
    "absurd scores": (outliers, "find"),
    "attacks, judged": (analyse, "_attack"),
    "ablation": (analyse, "_ablation"),
    "curves over models": (budgets, "by_models"),
    "curves over views": (budgets, "by_queries"),
    "other statistics": (analyse, "statistic_curves"),
    "epsilon": (analyse, "_bound"),
    "exposure": (exposure, "exposure"),
    "single decisions": (analyse, "reliability"),
    "figures": (figures, "draw"),
    "report page": (page, "write_report"),
    "files, with figures and page": (files, "write"),
}


def make(folder: Path, models: int, examples: int, queries: int, scores_alone: bool) -> None:
    """Write scores, masks and labels, and what else attacks need unless scores are wanted alone.

    What is there already stays.
    """
    shape = (models, examples, queries)
    path, last = folder / "scores.npy", folder / "gradient_norm.npy"
    there = path.exists() and np.load(path, mmap_mode="r").shape == shape
    if there and (scores_alone or last.exists()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    keep = membership.blocked_masks(0, models, examples, 1, BLOCK)
    np.save(folder / "keep.npy", keep)
    random = np.random.default_rng(0)
    place = 3 * random.standard_normal((examples, 1), np.float32)
    # Never so small that the attack's least σ, 1 % of the global one, would differ from the loop's.
    unit = 0.5 + random.gamma(2.0, size=(examples, 1)).astype(np.float32)
    labels = random.integers(CLASSES, size=examples)
    np.save(folder / "labels.npy", labels)
    scores = open_memmap(folder / "scores.tmp.npy", "w+", np.float32, shape)
    for model in range(models):
        noise = BETWEEN_MODELS * random.standard_normal((examples, 1), np.float32)
        noise = noise + BETWEEN_VIEWS * random.standard_normal((examples, queries), np.float32)
        scores[model] = place + unit * (noise + SHIFT * keep[model][:, np.newaxis])
    if not scores_alone:
        logits = open_memmap(folder / "logits.npy", "w+", np.float32, (models, examples, CLASSES))
        is_label = np.arange(CLASSES) == labels[:, np.newaxis]
        for model in range(models):
            others = np.where(is_label, -np.inf, random.standard_normal(is_label.shape, np.float32))
            logits[model] = others
            logits[model][is_label] = scores[model, :, 0] + np.logaddexp.reduce(others, axis=1)
        np.save(folder / "merlin.npy", random.integers(101, size=keep.shape) / np.float32(100))
        np.save(last, np.exp(-scores[:, :, 0] / 2))
    scores.flush()
    (folder / "scores.tmp.npy").rename(path)


def read(folder: Path) -> ScoreSet:
    names = ("scores", "labels", "logits", "merlin", "gradient_norm")
    mapped = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r")
        for name in names
        if (folder / f"{name}.npy").exists()
    }
    return ScoreSet(keep=np.load(folder / "keep.npy"), block=BLOCK, source=str(folder), **mapped)


def ideal_auc(queries: int) -> float:
    """AUC of the online attack if every mean and spread were known."""
    # Its score is then monotone in the mean over views, a Gaussian either way.
    spread = np.sqrt(BETWEEN_MODELS**2 + BETWEEN_VIEWS**2 / queries)
    return float(norm.cdf(SHIFT / spread / np.sqrt(2)))


def refit(score_set: ScoreSet, target: int, example: int) -> tuple[float, float]:
    """Online and offline score of one pair, σ per example, as a plain program computes them."""
    scores, keep = score_set.scores, score_set.keep
    left = np.arange(len(keep)) // BLOCK != target // BLOCK
    inside = scores[left & keep[:, example], example].astype(np.float64)
    outside = scores[left & ~keep[:, example], example].astype(np.float64)
    own = scores[target, example].astype(np.float64)
    mean_in, std_in = inside.mean(axis=0), inside.std(axis=0, ddof=1)
    mean_out, std_out = outside.mean(axis=0), outside.std(axis=0, ddof=1)
    online = norm.logpdf(own, mean_in, std_in) - norm.logpdf(own, mean_out, std_out)
    return float(online.sum()), float(-norm.logsf(own, mean_out, std_out).sum())


def loop(score_set: ScoreSet, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs [P, 2] of target and example, and their two scores [P, 2]."""
    random = np.random.default_rng(seed)
    drawn = random.integers((0, 0), score_set.keep.shape, size=(pairs, 2))
    return drawn, np.array([refit(score_set, *pair) for pair in drawn.tolist()])


def own_memory(done: threading.Event, seen: list[tuple[float, int]]) -> None:
    """Append times and RssAnon [kB] to `seen` until `done`; nothing where /proc does not tell."""
    status = Path("/proc/self/status")
    while status.exists():
        for text in status.read_text().splitlines():
            if text.startswith("RssAnon:"):
                seen.append((time.perf_counter(), int(text.split()[1])))
        if done.wait(0.05):
            break


def most(seen: list[tuple[float, int]], begin: float, end: float) -> int:
    """The largest memory [bytes] between two times."""
    return 1024 * max((size for at, size in seen if begin - 0.05 <= at <= end + 0.05), default=0)


def timed(parts: dict[str, tuple[float, float, float]]) -> None:
    """Have each of PARTS put its begin, end and CPU seconds into `parts`, from now on."""
    for label, (module, name) in PARTS.items():
        inner = getattr(module, name)

        def part(*given: Any, inner: Any = inner, key: str = label, **named: Any) -> Any:
            begin, cpu = time.perf_counter(), time.process_time()
            result = inner(*given, **named)
            if key == "ablation":  # which is made as it is asked for
                result = list(result)
            parts[key] = (begin, time.perf_counter(), time.process_time() - cpu)
            return result

        setattr(module, name, part)


def measure(task: str, folder: Path, pairs: int, seed: int) -> dict[str, Any]:
    """One task in this process: its seconds, memory and a check of what it computed."""
    score_set = read(folder)
    done, seen = threading.Event(), list[tuple[float, int]]()
    parts: dict[str, tuple[float, float, float]] = {}
    watch = threading.Thread(target=own_memory, args=(done, seen))
    watch.start()
    found: dict[str, Any] = {}
    start, start_cpu = time.perf_counter(), time.process_time()
    if task == "lira":
        result = lira.attack(score_set, references.find(score_set), AttackConfig())
    elif task == "default":
        lira_bayes.attack(score_set, references.find(score_set), AttackConfig())
    elif task == "attacks":
        rule = references.find(score_set)
        judge, judge_cpu = 0.0, 0.0
        for name, family in ATTACKS.items():
            begin, cpu = time.perf_counter(), time.process_time()
            result = family.attack(score_set, rule, AttackConfig(), False)
            made = time.perf_counter()
            parts[name] = (begin, made, time.process_time() - cpu)
            cpu = time.process_time()
            with threadpool_limits(1, "blas"):
                for scores in result.values():
                    judging.judged(scores, score_set.keep, rule.fold)
            del result
            judge += time.perf_counter() - made
            judge_cpu += time.process_time() - cpu
            parts[f"judging {name}"] = (made, time.perf_counter(), time.process_time() - cpu)
        start, start_cpu = start + judge, start_cpu + judge_cpu
    elif task == "stage":
        timed(parts)
        metrics = attacking.attack(
            score_set, AttackConfig(), "leave-block-out", folder / "attack", progress=False
        )
    else:
        loop(score_set, pairs, seed)
    found |= {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
    }
    done.set()
    watch.join()
    unit = 1 if sys.platform == "darwin" else 1024
    found["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found["own"] = most(seen, 0, float("inf"))
    found["parts"] = {
        key: [end - begin, cpu, most(seen, begin, end)] for key, (begin, end, cpu) in parts.items()
    }
    if task == "lira":
        drawn, expected = loop(score_set, min(pairs, 500), seed)
        names = ("lira-online", "lira-offline")
        got = np.stack([result[name][tuple(drawn.T)] for name in names], axis=1)
        found["error"] = float((np.abs(got - expected) / (1 + np.abs(expected))).max())
    elif task == "stage":
        found["auc"] = next(e["auc"] for e in metrics["attacks"] if e["name"] == "lira-online")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=256, help="N, a multiple of 2, at least 6")
    parser.add_argument("--examples", type=int, default=50_000, help="E, a multiple of 2")
    parser.add_argument("--queries", type=int, default=18, help="Q, views")
    parser.add_argument("--repeats", type=int, default=3, help="of each task")
    parser.add_argument("--loop-pairs", type=int, default=5_000, help="pairs the loop is timed on")
    parser.add_argument("--dir", type=Path, help="keep the score file here, or use the one there")
    parser.add_argument("--only", nargs="+", choices=TASKS, help="these tasks alone")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:  # a process of its own, started below
        found = measure(options.task, options.dir, options.loop_pairs, options.seed)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(prefix="lira_jax_attack_") as temporary:
        report(options, options.dir or Path(temporary))


def report(options: argparse.Namespace, folder: Path) -> None:
    """Make the file, run every task in turn, and print medians."""
    print(hardware.line("numpy", "scipy"))
    tasks = options.only or TASKS
    make(folder, options.models, options.examples, options.queries, OF_SCORES.issuperset(tasks))
    size = (folder / "scores.npy").stat().st_size
    print(
        f"N = {options.models}, E = {options.examples:,}, Q = {options.queries}: "
        f"{size / 1e9:.2f} GB of scores; median (least–most) of {options.repeats}",
        flush=True,
    )
    runs: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    for repeat in range(options.repeats):
        for task, found in runs.items():
            command = [sys.executable, __file__, "--task", task, "--dir", str(folder)]
            command += ["--loop-pairs", str(options.loop_pairs), "--seed", str(repeat)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))

    pairs = options.models * options.examples
    for found in runs.get("loop", ()):
        found["seconds"] *= pairs / options.loop_pairs
        found["cpu_seconds"] *= pairs / options.loop_pairs
    print(f"\n{'':7} {'seconds':>25} {'CPU seconds':>12} {'peak RSS':>9} {'its own':>9}")
    for task, found in runs.items():
        seconds = [one["seconds"] for one in found]
        cpu = statistics.median(one["cpu_seconds"] for one in found)
        rss, own = (max(one[key] for one in found) / 1e9 for key in ("rss", "own"))
        text = f"{statistics.median(seconds):,.1f} ({min(seconds):,.1f}–{max(seconds):,.1f})"
        print(f"{task:7} {text:>25} {cpu:12,.1f} {rss:6.2f} GB {own:6.2f} GB")

    for task in [task for task in ("attacks", "stage") if task in runs]:
        print(f"\n{'parts of ' + task:32} {'seconds':>9} {'CPU':>9} {'its own':>9}")
        for part in runs[task][0]["parts"]:
            each = [one["parts"][part] for one in runs[task]]
            wall, cpu = (statistics.median(one[n] for one in each) for n in range(2))
            print(f"{part:32} {wall:9,.1f} {cpu:9,.1f} {max(e[2] for e in each) / 1e9:6.2f} GB")

    if len(runs) < len(TASKS):
        return

    def ratio(key: str) -> float:
        return statistics.median(
            slow[key] / fast[key] for slow, fast in zip(runs["loop"], runs["lira"], strict=True)
        )

    print(
        f"\nloop / lira: {ratio('seconds'):,.0f}× in seconds, {ratio('cpu_seconds'):,.0f}× in CPU "
        f"seconds (the loop timed on {options.loop_pairs:,} of {pairs:,} pairs and scaled; it uses "
        "one core and computes 2 of the 8 variants)"
    )
    print(
        f"largest difference from the loop's scores: {max(r['error'] for r in runs['lira']):.1e} "
        f"(relative above 1); lira-online AUC {runs['stage'][0]['auc']:.4f}, "
        f"{ideal_auc(options.queries):.4f} if all means and spreads were known"
    )


if __name__ == "__main__":
    main()
