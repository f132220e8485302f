"""Label queries per second of HopSkipJump, beside that of the Adversarial Robustness Toolbox (ART).

    pip install --constraint constraints.txt adversarial-robustness-toolbox==1.20.1
    python benchmarks/label_only.py --data FOLDER   # with cifar10-jpeg/ and mnist/, Parquet files

A query is one image whose label one model is asked for. Models are trained first, by the package.
Then, on the same correctly classified images, block by block and in turn:

- ART's `HopSkipJump` as it is used: one `generate` for all images of a block, which it goes through
  one at a time, with its own settings but for `--iterations`. Its predict function is the jitted
  network (no PyTorch), padded to few sizes so that nothing is compiled on the way; a step of its
  searches is a call with one image;
- ours as score.py calls it: one model on each device, `TOGETHER` images at a time, a host loop over
  jitted iterations. Its budget is the mean number of queries that ART made per image of the block.

Compilation is left out of both. The rate is that of all models, which is what scoring has to do.
`plain` is the network alone on a ready batch, at the best size of a few: no attack can be faster,
so plain / ART bounds the ratio. `in predict` is the share of ART's time spent in that function.

Distances are of model 0, L2 for images in [0, 1], and are compared where ART found a start (it
tries noise only): ART's as returned, and after one more binary search that is not counted, since it
returns an image short of it. The interval of the ratio of means is a bootstrap's over images, 95 %.

    python benchmarks/label_only.py --cases digits --images 2 --blocks 1 --iterations 1 --epochs 1
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import hardware
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.stats import bootstrap

from lira_jax import ensemble, training
from lira_jax.candidates import build_network, candidates
from lira_jax.config import DataConfig, Experiment, NetworkConfig, TrainConfig
from lira_jax.label_only import hop_skip_jump
from lira_jax.networks import Network
from lira_jax.run import checkpoints

# What `--data` holds, training images, width of a ResNet-8, and epochs.
CASES = {
    "digits": ("", 0, 4, 10),
    "mnist": ("mnist", 1500, 16, 5),
    "cifar": ("cifar10-jpeg", 1500, 16, 10),
}
# Images searched together under a model, on a CPU and elsewhere, as in score.py.
TOGETHER, TOGETHER_ELSEWHERE = 8, 32
# Sizes that ART's batches are padded to; its default batch size is the largest.
SIZES = (1, 16, 32, 48, 64)
PLAIN_BATCHES = (36, 72, 144, 288)


class Trained(NamedTuple):
    """One model for each device of the mesh.

    Attributes:
        network: theirs.
        variables: [G, …], on the devices.
        images: float32 [E, H, W, C] in [−1, 1].
        labels: int32 [E].
        mesh: of the devices.
    """

    network: Network
    variables: Any
    images: np.ndarray
    labels: np.ndarray
    mesh: Mesh


def trained(case: str, options: argparse.Namespace) -> Trained:
    """Models trained as train.py does."""
    folder, limit, width, epochs = CASES[case]
    mesh = ensemble.models_mesh()
    experiment = Experiment(
        data=DataConfig(case, str(options.data / folder), limit=limit) if folder else DataConfig(),
        network=NetworkConfig("resnet", 8, width),
        train=TrainConfig(
            models=mesh.size + mesh.size % 2,
            epochs=options.epochs or epochs,
            batch_size=32,
            ema=0.98,
            mirror=False,
            shift=0,
        ),
    )
    data = candidates(experiment)
    network = build_network(experiment, data)
    one = jax.eval_shape(network.init, jax.random.key(0))
    with tempfile.TemporaryDirectory(prefix="lira_jax_label_only_") as run:
        training.train(experiment, Path(run))
        groups = []
        for group in checkpoints.saved_groups(Path(run)):
            like = jax.tree.map(lambda x, g=group: np.empty((g.size, *x.shape), x.dtype), one)
            groups.append(checkpoints.restore(Path(run), group, like))
    variables = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: mesh.size], *groups)
    images = (np.asarray(data.images) / 127.5 - 1).astype(np.float32)
    labels = np.asarray(data.labels, np.int32)
    return Trained(network, ensemble.put_padded(variables, mesh), images, labels, mesh)


@dataclass
class Predict:
    """Images [n, H, W, C] ↦ logits [n, K] of one model for ART, and what that took.

    Attributes:
        function: jitted.
        queries: images so far.
        seconds: in this function so far.
    """

    function: Callable[[np.ndarray], jax.Array]
    queries: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        size = next(size for size in SIZES if size >= len(x))
        padded = np.zeros((size, *x.shape[1:]), np.float32)
        padded[: len(x)] = x
        logits = np.asarray(self.function(padded))[: len(x)]
        self.queries += len(x)
        self.seconds += time.perf_counter() - start
        return logits


def art(
    predict: Predict, shape: tuple[int, ...], classes: int, iterations: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """ART's attack: (images, labels) ↦ images that are classified differently, or the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of frameworks that are not installed
        from art.attacks.evasion import HopSkipJump
        from art.estimators.classification import BlackBoxClassifier
    classifier = BlackBoxClassifier(predict, shape, classes, clip_values=(-1.0, 1.0))
    attack = HopSkipJump(classifier, max_iter=iterations, batch_size=SIZES[-1], verbose=False)
    return lambda x, labels: attack.generate(x, np.eye(classes, dtype=np.float32)[labels])


def ours(models: Trained) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """Our attack: (numbers of examples, budget) ↦ distances and queries [G, B] under all models."""
    key, mesh = jax.random.key(0), models.mesh
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    together, chunk = TOGETHER if on_cpu else TOGETHER_ELSEWHERE, ensemble.score_batch(0, 1, mesh)
    shared = ensemble.put_shared((models.images, models.labels), mesh)

    def classify(variables: Any) -> Callable[[jax.Array], jax.Array]:
        return lambda x: jnp.argmax(models.network.apply(variables, x), axis=-1).astype(jnp.int32)

    # The budget is an argument of the compiled program, which serves for every block.
    def begin(variables: Any, index: Any, real: Any, budget: Any, images: Any, labels: Any) -> Any:
        truth = jnp.where(real, labels[index], -1)  # what fills up a batch is done at once
        return hop_skip_jump.start(
            classify(variables), images[index], truth, index, images[:64], key, (budget,), chunk
        )

    def go_on(model: Any, budget: Any) -> Any:
        variables, state = model
        return hop_skip_jump.advance(classify(variables), state, key, (budget,), chunk)

    lifted_begin = ensemble.over_models(begin, mesh)
    lifted_go_on = ensemble.over_models(go_on, mesh)

    def search(numbers: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
        real = np.arange(together) < len(numbers)
        index = np.where(real, np.resize(numbers, together), 0).astype(np.int32)
        most = np.int32(budget)
        state = lifted_begin(models.variables, index, real, most, *shared)
        while ensemble.on_host(state.active, mesh.size).any():
            state = lifted_go_on((models.variables, state), most)
        found = ensemble.on_host((state.reached, state.queries), mesh.size)
        return found[0][:, real, 0], found[1][:, real]

    def run(numbers: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
        pieces = [
            search(numbers[start : start + together], budget)
            for start in range(0, len(numbers), together)
        ]
        distances, queries = (np.concatenate(some, axis=1) for some in zip(*pieces, strict=True))
        return distances, queries

    return run


def plain_rate(models: Trained) -> float:
    """Images per second of the networks alone, on all devices or on one, whichever is faster."""
    random, best = np.random.default_rng(0), 0.0
    one = ensemble.models_mesh(jax.devices()[:1])
    first = jax.tree.map(lambda leaf: leaf[:1], ensemble.on_host(models.variables, 1))
    for mesh, variables in (
        (models.mesh, models.variables),
        (one, ensemble.put_padded(first, one)),
    ):
        apply = ensemble.over_models(models.network.apply, mesh)
        for batch in PLAIN_BATCHES:
            x = random.uniform(-1, 1, (batch, *models.images.shape[1:])).astype(np.float32)
            x = ensemble.put_shared(x, mesh)
            apply(variables, x).block_until_ready()
            for _ in range(3):
                start, images = time.perf_counter(), 0
                while (seconds := time.perf_counter() - start) < 0.1:
                    apply(variables, x).block_until_ready()
                    images += mesh.size * batch
                best = max(best, images / seconds)
    return best


def searched(
    function: Callable[[np.ndarray], jax.Array], x: np.ndarray, far: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Distances [B] after a binary search from images `far` back to `x`, where that misleads."""
    low, high = np.zeros(len(x)), np.ones(len(x))
    for _ in range(hop_skip_jump.search_queries(x.shape[1:])):
        middle = (low + high) / 2
        asked = (x + middle[:, None, None, None] * (far - x)).astype(np.float32)
        wrong = np.argmax(np.asarray(function(asked)), axis=1) != labels
        low, high = np.where(wrong, low, middle), np.where(wrong, middle, high)
    return high * distance(x, far)


def distance(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[B], for images in [0, 1]."""
    return np.linalg.norm((x - other).reshape(len(x), -1), axis=1) / 2


def compared(name: str, own: np.ndarray, other: np.ndarray) -> str:
    """One line: mean distances and the ratio of the means."""
    means = own.mean(), other.mean()
    line = f"  {name}: {means[1]:.4f}, ours {means[0]:.4f}, ratio {means[0] / means[1]:.3f}"
    if len(own) < 3:
        return line

    def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean(a, axis=axis) / np.mean(b, axis=axis)

    interval = bootstrap(
        (own, other), ratio, paired=True, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return f"{line} ({interval.low:.3f} to {interval.high:.3f})"


def report(case: str, options: argparse.Namespace) -> None:
    """Train, ask with both in turn, and print what was found."""
    models = trained(case, options)
    shape, classes = models.images.shape[1:], int(models.labels.max()) + 1
    first = jax.tree.map(lambda leaf: leaf[0], ensemble.on_host(models.variables, 1))
    placed = jax.device_put(first, jax.devices()[0])
    jitted = jax.jit(models.network.apply)

    def function(x: np.ndarray) -> jax.Array:
        return jitted(placed, x)

    count = options.images * options.blocks
    some = models.images[: 4 * count]
    logits = ensemble.over_models(models.network.apply, models.mesh)(models.variables, some)
    given = np.argmax(ensemble.on_host(logits, models.mesh.size), axis=-1)
    right = np.flatnonzero((given == models.labels[: len(some)]).all(axis=0))[:count]
    if len(right) < count:
        raise SystemExit(f"{case}: too few images are classified correctly; train for longer")
    predict = Predict(function)
    attack, search = art(predict, shape, classes, options.iterations), ours(models)
    for size in SIZES:
        predict(models.images[:size])
    search(right[:1], hop_skip_jump.minimum_budget(shape))  # compiles

    own_rates, art_rates, shares, budgets = [], [], [], []
    own, returned, after = [], [], []
    for numbers in np.split(right, options.blocks):
        x, labels = models.images[numbers], models.labels[numbers]
        predict.queries, predict.seconds = 0, 0.0
        start = time.perf_counter()
        found = attack(x, labels)
        seconds = time.perf_counter() - start
        art_rates.append(predict.queries / seconds)
        shares.append(predict.seconds / seconds)
        budget = max(predict.queries // len(numbers), hop_skip_jump.minimum_budget(shape))
        budgets.append(budget)
        start = time.perf_counter()
        distances, queries = search(numbers, budget)
        own_rates.append(queries.sum() / (time.perf_counter() - start))
        assert queries.max() <= budget
        met = distance(x, found) > 0
        own.append(distances[0, met])
        returned.append(distance(x, found)[met])
        after.append(searched(function, x, found, labels)[met])

    plain = plain_rate(models)
    rates = [statistics.median(rates) for rates in (own_rates, art_rates)]
    ratio = statistics.median(a / b for a, b in zip(own_rates, art_rates, strict=True))
    size = "×".join(map(str, shape))
    print(
        f"\n{case}: {size}, ResNet-8 of width {CASES[case][2]}; {options.blocks} × "
        f"{options.images} images, {statistics.mean(budgets):,.0f} queries of each"
    )
    print(
        f"  ours {rates[0]:,.0f} queries/s, ART {rates[1]:,.0f}, ratio {ratio:.1f}; plain "
        f"{plain:,.0f} images/s, plain / ART {plain / rates[1]:.1f}, ours / plain "
        f"{rates[0] / plain:.0%}, ART in predict {statistics.median(shares):.0%}"
    )
    verdict = "reached" if ratio >= 20 else "not reached"
    if ratio < 20 and plain / rates[1] < 20:
        verdict += ": the network's own forward passes do not allow it on this machine"
    print(f"  20 × ART: {verdict}")
    joined = [np.concatenate(some) for some in (own, returned, after)]
    print(f"  ART found a start for {len(joined[0])} of {count}; mean distance of these:")
    if len(joined[0]):
        print(compared("as ART returns it", joined[0], joined[1]))
        print(compared("after one more search", joined[0], joined[2]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--data", type=Path, help="folder of the data sets of mnist and cifar")
    parser.add_argument("--images", type=int, default=16, help="of a block")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=10, help="of ART's attack")
    parser.add_argument("--epochs", type=int, help="of training; default the case's own")
    options = parser.parse_args()
    if options.data is None and set(options.cases) - {"digits"}:
        parser.error("mnist and cifar need --data; or give --cases digits")
    ensemble.set_up("0/1")
    print(hardware.line("jax", "flax", "adversarial-robustness-toolbox"))
    devices = jax.devices()
    print(f"{len(devices)} × {devices[0].device_kind}; medians of {options.blocks}", flush=True)
    for case in options.cases:
        report(case, options)


if __name__ == "__main__":
    main()
