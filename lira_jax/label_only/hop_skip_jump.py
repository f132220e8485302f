"""Distance to the decision boundary from labels alone: HopSkipJump, L2, untargeted.

Chen, Jordan and Wainwright 2020, algorithm 2, as it is commonly run. An image that is classified
differently is moved towards the original by binary search, up to the boundary; then each iteration
estimates the boundary's normal there from the labels of δ-perturbed copies, takes a step along it
and searches again. All examples go through an iteration together, in steps of `chunk` images: the
copies asked about in a step may be of several examples, and examples that are done have none.

Every label counts as a query: the image's own, each start that is tried, each step of a binary
search, each direction and each step size. An iteration is begun only where the budget lets it be
finished whatever happens. Everything random about a query is a function of (key, number of the
example, number of the query), so that results depend neither on the other examples nor, but for
rounding inside `classify`, on `chunk`.

`advance` makes one iteration, for a host loop that can be interrupted; `run` is the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Key

from lira_jax.errors import InputError

# Starts tried: uniform noise first, then other images, since some networks give all noise one
# label.
NOISE_TRIES, OTHER_TRIES = 20, 10
# Directions of iteration t: this · √t, but fewer, to a minimum, where the budget leaves less.
DIRECTIONS, LEAST_DIRECTIONS = 100, 10
# Step sizes tried in an iteration, each half the one before.
STEP_TRIES = 10

Classify = Callable[[Float[Array, "n H W C"]], Int32[Array, " n"]]
"""Images in [−1, 1] ↦ labels."""


class State(NamedTuple):
    """Where the search stands for B examples, at C checkpoints.

    Attributes:
        images: the originals, in [−1, 1].
        labels: true labels.
        numbers: of the examples, for randomness.
        adversarial: newest image at the boundary that is classified differently; the original where
            there is none.
        distance: from the original to it [images in [0, 1]].
        reached: best distance known within each checkpoint's number of queries; the diameter
            √(H·W·C) before anything was found, 0 where the original is misclassified.
        queries: labels asked for.
        active: does the budget let another iteration be finished?
        iteration: iterations done.
    """

    images: Float[Array, "B H W C"]
    labels: Int32[Array, " B"]
    numbers: Int32[Array, " B"]
    adversarial: Float[Array, "B H W C"]
    distance: Float[Array, " B"]
    reached: Float[Array, "B C"]
    queries: Int32[Array, " B"]
    active: Bool[Array, " B"]
    iteration: Int32[Array, ""]


def tolerance(shape: Sequence[int]) -> float:
    """θ, the share of a line at which a binary search on it ends: 0.01 / √d for d features.

    The paper's d^(−3/2) asks of an image of 32×32×3 what float32 networks resolve badly, and five
    queries more per search.
    """
    return 0.01 / math.sqrt(math.prod(shape))


def search_queries(shape: Sequence[int]) -> int:
    """Queries of each binary search on images of shape [H, W, C]."""
    return math.ceil(-math.log2(tolerance(shape)))


def minimum_budget(shape: Sequence[int]) -> int:
    """The least budget with which any image of shape [H, W, C] has a start and one iteration."""
    start = 1 + NOISE_TRIES + OTHER_TRIES + search_queries(shape)
    return start + LEAST_DIRECTIONS + _rest_of_iteration(shape)


def _rest_of_iteration(shape: Sequence[int]) -> int:
    """Most queries of an iteration beside its directions."""
    return STEP_TRIES + search_queries(shape)


def check_budget(budget: int, shape: Sequence[int], name: str = "label_only.budget") -> None:
    """Refuse a budget that does not suffice for images of shape [H, W, C].

    Raises:
        InputError: it does not; the message calls it `name`.
    """
    least = minimum_budget(shape)
    if budget < least:
        size = "×".join(map(str, shape))
        raise InputError(
            f"{name} = {budget}: HopSkipJump needs at least {least} queries on images of {size}; "
            f"set {name} to {least} or more"
        )


def diameter(shape: Sequence[int]) -> float:
    """The largest distance that two images of shape [H, W, C] can have [images in [0, 1]]."""
    return math.sqrt(math.prod(shape))


def start(
    classify: Classify,
    images: Float[Array, "B H W C"],
    labels: Int32[Array, " B"],
    numbers: Int32[Array, " B"],
    others: Float[Array, "S H W C"],
    key: Key[Array, ""],
    checkpoints: tuple[int, ...],
    chunk: int,
) -> State:
    """Find a misclassified image for each example and search the boundary towards it.

    Args:
        classify: the model.
        images: in [−1, 1].
        labels: true labels.
        numbers: of the examples, for randomness.
        others: images to start from where noise is not misclassified, in [−1, 1].
        key: of all randomness.
        checkpoints: ascending numbers of queries, the budget last, at least `minimum_budget`.
        chunk: most images classified together.

    Returns:
        The state before the first iteration. Where nothing is misclassified, no example is active
        again, and distances stay at the diameter.
    """
    shape = images.shape[1:]
    keys = _keys(key, numbers)

    def candidate(key: Array, number: Array, query: Array) -> Float[Array, "H W C"]:
        # Query 0 was for the image itself.
        key = jax.random.fold_in(key, query)
        noise = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
        # Each example tries different ones, and begins elsewhere.
        return jnp.where(query <= NOISE_TRIES, noise, others[(number + query) % len(others)])

    def attempt(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        queries, trying, misclassified = carry
        hit = _one_each(
            classify,
            labels,
            lambda example: jax.vmap(candidate)(keys[example], numbers[example], queries[example]),
            trying,
            chunk,
        )
        queries += trying
        trying = trying & ~hit & (queries <= NOISE_TRIES + OTHER_TRIES)
        return queries, trying, misclassified | hit

    every = jnp.ones(labels.shape, bool)
    wrong = _one_each(classify, labels, lambda example: images[example], every, chunk)
    queries, _, started = lax.while_loop(
        lambda carry: jnp.any(carry[1]),
        attempt,
        (every.astype(jnp.int32), ~wrong, jnp.zeros_like(every)),
    )
    far = jax.vmap(candidate)(keys, numbers, queries - 1)
    state = State(
        images=images,
        labels=labels,
        numbers=numbers,
        adversarial=images,
        distance=jnp.zeros(labels.shape),
        reached=jnp.where(wrong[:, None], 0.0, jnp.full(len(checkpoints), diameter(shape))),
        queries=queries,
        active=started,
        iteration=jnp.zeros((), jnp.int32),
    )
    return _search(classify, state, far, started, checkpoints, chunk)


def advance(
    classify: Classify,
    state: State,
    key: Key[Array, ""],
    checkpoints: tuple[int, ...],
    chunk: int,
) -> State:
    """One iteration of every active example: estimate the normal, step, search.

    Args:
        classify: the model.
        state: of `start` or `advance`.
        key, checkpoints, chunk: as for `start`.

    Returns:
        The next state. Examples that are not active stay as they are.
    """
    shape = state.images.shape[1:]
    iteration = state.iteration + 1
    root = jnp.sqrt(iteration.astype(jnp.float32))
    left = checkpoints[-1] - state.queries - _rest_of_iteration(shape)
    directions = jnp.minimum(jnp.floor(DIRECTIONS * root).astype(jnp.int32), left)
    directions = jnp.where(state.active, directions, 0)
    # The images' range is 2 wide, and distances are in units of half of it. The least δ is what
    # float32 resolves in every pixel.
    first = 0.1 * 2
    later = math.sqrt(math.prod(shape)) * tolerance(shape) * 2 * state.distance
    delta = jnp.maximum(jnp.where(iteration == 1, first, later), 1e-6 * diameter(shape))
    normal = _normal(classify, state, key, delta, directions, chunk)
    state = state._replace(queries=state.queries + directions, iteration=iteration)

    def stepped(example: Array | slice, halvings: Array) -> Float[Array, "n H W C"]:
        size = 2 * state.distance[example] / root * 0.5 ** halvings[example].astype(jnp.float32)
        return jnp.clip(state.adversarial[example] + _wide(size) * normal[example], -1, 1)

    def attempt(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        halvings, trying, misclassified = carry
        hit = _one_each(
            classify, state.labels, lambda example: stepped(example, halvings), trying, chunk
        )
        # The number of halvings stays what it was when the step was found.
        tries = halvings + 1
        trying = trying & ~hit
        return (
            jnp.where(trying, tries, halvings),
            trying & (tries < STEP_TRIES),
            misclassified | hit,
        )

    nothing = jnp.zeros_like(state.queries)
    halvings, _, crossed = lax.while_loop(
        lambda carry: jnp.any(carry[1]),
        attempt,
        (nothing, state.active, jnp.zeros_like(state.active)),
    )
    asked = jnp.where(state.active, halvings + crossed, 0)
    state = state._replace(queries=state.queries + asked)
    far = stepped(slice(None), halvings)
    return _search(classify, state, far, crossed, checkpoints, chunk)


def run(
    classify: Classify,
    images: Float[Array, "B H W C"],
    labels: Int32[Array, " B"],
    numbers: Int32[Array, " B"],
    others: Float[Array, "S H W C"],
    key: Key[Array, ""],
    checkpoints: tuple[int, ...],
    chunk: int,
) -> State:
    """`start` and as many iterations as the budget allows; arguments as for `start`.

    Returns:
        The last state, of which `reached` and `queries` are the results.
    """
    return lax.while_loop(
        lambda state: jnp.any(state.active),
        lambda state: advance(classify, state, key, checkpoints, chunk),
        start(classify, images, labels, numbers, others, key, checkpoints, chunk),
    )


def _normal(
    classify: Classify,
    state: State,
    key: Key[Array, ""],
    delta: Float[Array, " B"],
    directions: Int32[Array, " B"],
    chunk: int,
) -> Float[Array, "B H W C"]:
    """Unit normal of the boundary at each adversarial image, towards misclassification: the sum of
    (φ − mean φ) u over directions u, φ = 1 where x + δu is misclassified and −1 where not
    (equation 16)."""
    batch, *shape = state.images.shape
    keys = _keys(key, state.numbers)

    def draw(key: Array, query: Array) -> Float[Array, "H W C"]:
        return jax.random.normal(jax.random.fold_in(key, query), tuple(shape))

    def step(sums: tuple[Array, ...], example: Array, number: Array, to: Array) -> Any:
        base, size = state.adversarial[example], _wide(delta[example])
        u = jax.vmap(draw)(keys[example], state.queries[example] + number)
        asked = jnp.clip(base + size * u / _wide(_norm(u)), -1, 1)
        # What was really asked about, after clipping.
        u = (asked - base) / size
        phi = jnp.where(classify(asked) != state.labels[example], 1.0, -1.0)
        # One row after the other: the order of a sum does not depend on the chunk.
        rows = (u, _wide(phi) * u, phi)
        return tuple(
            total.at[to].add(row, mode="drop") for total, row in zip(sums, rows, strict=True)
        )

    zeros = jnp.zeros_like(state.images)
    of_u, of_phi_u, of_phi = _in_chunks(step, (zeros, zeros, jnp.zeros(batch)), directions, chunk)
    mean = of_phi / jnp.maximum(directions, 1)
    # With all labels the same the plain mean says at least which side is more likely.
    offset = jnp.where(jnp.abs(mean) == 1, 0.0, mean)
    normal = of_phi_u - _wide(offset) * of_u
    return normal / _wide(jnp.maximum(_norm(normal), 1e-20))


def _search(
    classify: Classify,
    state: State,
    far: Float[Array, "B H W C"],
    searched: Bool[Array, " B"],
    checkpoints: tuple[int, ...],
    chunk: int,
) -> State:
    """Binary search between original and a misclassified image, for the examples so marked; then
    who is active, of those that were."""
    shape = state.images.shape[1:]
    line = far - state.images
    length = _norm(line) / 2

    def blend(example: Array | slice, share: Array) -> Float[Array, "n H W C"]:
        return jnp.clip(state.images[example] + _wide(share[example]) * line[example], -1, 1)

    def record(reached: Array, queries: Array, share: Array) -> Array:
        known = searched[:, None] & (queries[:, None] <= jnp.array(checkpoints))
        return jnp.where(known, jnp.minimum(reached, (share * length)[:, None]), reached)

    def halve(_: int, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, queries, reached = carry
        middle = (low + high) / 2
        hit = _one_each(
            classify, state.labels, lambda example: blend(example, middle), searched, chunk
        )
        low, high = jnp.where(hit, low, middle), jnp.where(hit, middle, high)
        queries += searched
        return low, high, queries, record(reached, queries, high)

    low, high = jnp.zeros_like(length), jnp.ones_like(length)
    _, high, queries, reached = lax.fori_loop(
        0,
        search_queries(shape),
        halve,
        (low, high, state.queries, record(state.reached, state.queries, high)),
    )
    needed = LEAST_DIRECTIONS + _rest_of_iteration(shape)
    return state._replace(
        adversarial=jnp.where(_wide(searched), blend(slice(None), high), state.adversarial),
        distance=jnp.where(searched, high * length, state.distance),
        reached=reached,
        queries=queries,
        active=state.active & (queries + needed <= checkpoints[-1]),
    )


def _one_each(
    classify: Classify,
    labels: Int32[Array, " B"],
    image_of: Callable[[Int32[Array, " n"]], Float[Array, "n H W C"]],
    asked: Bool[Array, " B"],
    chunk: int,
) -> Bool[Array, " B"]:
    """One query for each example so marked: is its image misclassified? False for the others."""

    def step(wrong: Array, example: Array, number: Array, to: Array) -> Array:
        del number
        return wrong.at[to].set(classify(image_of(example)) != labels[example], mode="drop")

    counts = asked.astype(jnp.int32)
    return _in_chunks(step, jnp.zeros_like(asked), counts, min(chunk, len(labels)))


def _in_chunks(
    step: Callable[[Any, Array, Array, Array], Any],
    carry: Any,
    counts: Int32[Array, " B"],
    chunk: int,
) -> Any:
    """Fold over all pairs (example, number < counts[example]), `chunk` at a time.

    Args:
        step: (carry, examples [chunk], numbers [chunk], places [chunk]) ↦ carry. Places are the
            examples, or B, to be dropped, where the last chunk is filled up.
        carry: to begin with.
        counts: pairs of each example.
        chunk: pairs per step.
    """
    ends = jnp.cumsum(counts)

    def at(number: Array, carry: Any) -> Any:
        pair = number * chunk + jnp.arange(chunk)
        example = jnp.searchsorted(ends, pair, side="right").astype(jnp.int32)
        # Filled up with the last example's image, whatever it is.
        within = jnp.minimum(example, len(counts) - 1)
        return step(carry, within, pair - (ends - counts)[within], example)

    return lax.fori_loop(0, -(-ends[-1] // chunk), at, carry)


def _keys(key: Key[Array, ""], numbers: Int32[Array, " B"]) -> Key[Array, " B"]:
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def _wide(values: Array) -> Array:
    """[n] ↦ [n, 1, 1, 1]."""
    return values[:, None, None, None]


def _norm(images: Float[Array, "n H W C"]) -> Float[Array, " n"]:
    """L2 norm of each, by adding halves to each other: XLA's own sums come in an order that depends
    on n, and an example's result shall not depend on the others."""
    squares = jnp.square(images).reshape(len(images), -1)
    while squares.shape[1] > 1:
        half = squares.shape[1] // 2
        rest = squares[:, 2 * half :]
        squares = jnp.concatenate([squares[:, :half] + squares[:, half : 2 * half], rest], axis=1)
    return jnp.sqrt(squares[:, 0])
