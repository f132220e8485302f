"""Last-layer Laplace approximation with Kronecker factors: predictions that know what the last
layer has not learnt (Ritter et al. 2018; Kristiadi et al. 2020; Daxberger et al. 2021, "Laplace
Redux").

The logits of one input are f = W φ with φ = s·(x, 1): x are the last layer's inputs, s is the
network's `head_scale`, and W [K, D] holds kernel and bias, so that D is one more than x has. Over a
model's n members, the generalised Gauss-Newton matrix of the cross-entropy loss by W is
Σ_i φ_i φ_iᵀ ⊗ Λ_i with Λ = diag(p) − p pᵀ. It is taken for A ⊗ B, with A = Σ_i φ_i φ_iᵀ and
B = 1/n Σ_i Λ_i. Given a Gaussian prior of precision δ on each weight, the posterior of W is
N(trained W, (A ⊗ B + δ I)⁻¹), and in the eigenbases of A and B its covariance is diagonal:
1 / (a_j b_k + δ).

All functions are for one model and pure, to be used within `jit`, `vmap` and `lax.map`; but for
`check_last_layer`, which is for the host. All is float32. The eigenvalues of A span many orders of
magnitude, and inputs unlike the members, which is what all this is about, meet the least of them.
So A itself, of which float32 would keep the largest seven digits, is never formed: its
triangular root R, RᵀR = A, is updated by QR decompositions, and the singular values of R are the
roots of A's eigenvalues.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, Key

from lira_jax.errors import InputError
from lira_jax.networks import Network, Variables, last_layer

# Halvings of the bracket around the prior's logarithm: more than float32 tells apart.
_HALVINGS = 40
# Logits may differ by this share of the largest from what the last layer's inputs and weights give,
# as they do where they are made with fewer bits; another layer gives quite others.
_TOLERANCE = 0.02


class Factors(NamedTuple):
    """Sums over some of a model's members.

    Attributes:
        root: upper triangular R, with RᵀR = A = Σ φ φᵀ.
        products: Σ p pᵀ, with zeros on the diagonal.
        members: how many.
    """

    root: Float[Array, "D D"]
    products: Float[Array, "K K"]
    members: Float[Array, ""]


class Posterior(NamedTuple):
    """Distribution of a model's last-layer weights about the trained ones.

    Attributes:
        inputs: eigenvectors of A, in columns.
        classes: eigenvectors of B, in columns.
        variance: of the weights in that basis, 1 / (a_j b_k + δ).
        prior: δ, precision of each weight's prior.
    """

    inputs: Float[Array, "D D"]
    classes: Float[Array, "K K"]
    variance: Float[Array, "D K"]
    prior: Float[Array, ""]


def last_layer_weights(
    variables: Variables, arch: str
) -> tuple[Float[Array, "F K"], Float[Array, "K"]]:
    """Kernel and bias of a network's last layer, as `Network.head_inputs` meets them.

    Raises:
        InputError: a network of the user's own whose last layer is not told by its name, or has no
            kernel and bias.
    """
    name = last_layer(variables, arch, "trust.laplace")
    layer = variables["params"][name]
    if not {"kernel", "bias"} <= set(layer):
        raise InputError(
            f'trust.laplace: network.arch = "{arch}": its last layer {name} has no kernel and '
            "bias; make it a nnx.Linear with bias, or give --trust.laplace False"
        )
    kernel, bias = layer["kernel"], layer["bias"]
    return kernel.reshape(-1, kernel.shape[-1]), bias


def check_last_layer(
    network: Network, arch: str, variables: Variables, images: Float[np.ndarray, "B H W C"]
) -> None:
    """Refuse a network whose logits are not head_scale · (head_inputs @ kernel + bias).

    Args:
        variables: of one model.
        images: a few, as the network takes them.

    Raises:
        InputError: they are not, or a user's module does not tell its last layer or its inputs.
    """
    kernel, bias = last_layer_weights(variables, arch)
    logits, inputs = jax.jit(lambda v, x: (network.apply(v, x), network.head_inputs(v, x)))(
        variables, images
    )
    fits = inputs.ndim == 2 and (inputs.shape[1], logits.shape[1]) == kernel.shape
    if fits:
        off = jnp.abs(network.head_scale * (inputs @ kernel + bias) - logits)
        # NaN, of a model that has diverged, is for others to tell.
        fits = not bool(jnp.max(off) > _TOLERANCE * jnp.max(jnp.abs(logits)))
    if not fits:
        raise InputError(
            f'trust.laplace: network.arch = "{arch}": its logits are not features(images) @ kernel '
            "+ bias of its last layer, times head_scale if it has one; mend its method features, "
            "or give --trust.laplace False"
        )


def no_factors(inputs: int, classes: int) -> Factors:
    """Sums over no members, for F last-layer inputs and K classes."""
    return Factors(
        jnp.zeros((inputs + 1, inputs + 1)), jnp.zeros((classes, classes)), jnp.zeros(())
    )


def add_factors(
    factors: Factors,
    inputs: Float[Array, "B F"],
    logits: Float[Array, "B K"],
    scale: float,
    counts: Float[Array, "B"],
) -> Factors:
    """`factors` with B more members; for `lax.scan` over a model's members.

    Args:
        inputs: of the last layer.
        scale: `head_scale` of the network.
        counts: 1 for a member, 0 for an example that only fills the batch.
    """
    rows = _with_bias(inputs, scale) * jnp.sqrt(counts)[:, None]
    root = jnp.linalg.qr(jnp.concatenate([factors.root, rows]), mode="r")
    p = jax.nn.softmax(logits)
    products = jnp.matmul((p * counts[:, None]).T, p, precision=lax.Precision.HIGHEST)
    apart = 1 - jnp.eye(logits.shape[1])
    return Factors(root, factors.products + apart * products, factors.members + jnp.sum(counts))


def posterior(
    factors: Factors, kernel: Float[Array, "F K"], bias: Float[Array, "K"], prior: float
) -> Posterior:
    """The posterior of the last layer's weights.

    Args:
        factors: of all of the model's members.
        kernel: trained weights of the last layer, with `bias`.
        prior: precision δ of each weight's prior; 0 takes the one of the greatest marginal
            likelihood (MacKay 1992; Daxberger et al., section 3.3).
    """
    _, singular, directions = jnp.linalg.svd(factors.root)
    # Λ_kk = p_k Σ_{l≠k} p_l: as rows sum to 0, nothing cancels where p rounds to 1. And as they
    # do, the least eigenvalue is 0.
    by_class = jnp.diag(jnp.sum(factors.products, axis=1)) - factors.products
    b, classes = jnp.linalg.eigh(by_class / factors.members)
    b = jnp.maximum(b, 0).at[0].set(0)
    curvature = jnp.square(singular)[:, None] * b
    if prior:
        precision = jnp.float32(prior)
    else:
        squares = jnp.sum(jnp.square(kernel)) + jnp.sum(jnp.square(bias))
        precision = _most_likely_prior(curvature, squares)
    return Posterior(directions.T, classes, 1 / (curvature + precision), precision)


def _most_likely_prior(curvature: Float[Array, "D K"], squares: Float[Array, ""]) -> Array:
    """δ of the greatest marginal likelihood of the members, by Laplace's method
    −δ/2 ‖W‖² + ½ Σ_jk log(δ / (λ_jk + δ)) + const, given λ = a_j b_k and ‖W‖².

    Where it is greatest, δ ‖W‖² = Σ_jk λ_jk / (λ_jk + δ), the number of well-determined weights.
    One side rises with δ and the other falls: there is one solution, and halving finds it.
    """
    # From where the left side is below ½ and the right above, to where it is every weight. If all
    # members are predicted with certainty, they tell nothing of δ: nearly 0, not NaN.
    greatest = jnp.maximum(jnp.max(curvature), 1e-30)
    low = jnp.minimum(greatest, 1 / squares) / 2
    high = curvature.size / squares

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        prior = jnp.exp(middle)
        below = prior * squares < jnp.sum(curvature / (curvature + prior))
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = lax.fori_loop(0, _HALVINGS, halve, (jnp.log(low), jnp.log(high)))
    return jnp.exp((low + high) / 2)


def probit(
    posterior: Posterior,
    inputs: Float[Array, "B F"],
    logits: Float[Array, "B K"],
    scale: float,
) -> Float[Array, "B K"]:
    """Logits whose softmax approximates the mean prediction over the posterior:
    f_k / √(1 + π/8 · Var f_k) (MacKay 1992; Daxberger et al., section 3.4)."""
    variance = jnp.matmul(
        _variances(posterior, inputs, scale),
        jnp.square(posterior.classes).T,
        precision=lax.Precision.HIGHEST,
    )
    return logits / jnp.sqrt(1 + np.pi / 8 * variance)


def sampled(
    posterior: Posterior,
    inputs: Float[Array, "B F"],
    logits: Float[Array, "B K"],
    scale: float,
    index: Int32[Array, "B"],
    key: Key[Array, ""],
    samples: int,
) -> Float[Array, "B K"]:
    """Log-probabilities of the mean prediction over draws of the last layer's weights.

    Small ones keep their digits; draws are made one after the other, so that memory does not grow
    with their number.

    Args:
        index: number of each input: its draws are a function of (key, number) alone, whatever batch
            it is in.
        samples: draws.
    """
    spread = jnp.sqrt(_variances(posterior, inputs, scale))
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(index)

    def noise(key: Key[Array, ""], draw: Array) -> Float[Array, "K"]:
        return jax.random.normal(jax.random.fold_in(key, draw), logits.shape[1:])

    def add(draw: Array, total: Float[Array, "B K"]) -> Float[Array, "B K"]:
        along = spread * jax.vmap(noise, (0, None))(keys, draw)
        moved = jnp.matmul(along, posterior.classes.T, precision=lax.Precision.HIGHEST)
        return jnp.logaddexp(total, jax.nn.log_softmax(logits + moved))

    total = lax.fori_loop(0, samples, add, jnp.full_like(logits, -jnp.inf))
    return total - np.float32(np.log(samples))


def _with_bias(inputs: Float[Array, "B F"], scale: float) -> Float[Array, "B D"]:
    """φ: what W multiplies."""
    return scale * jnp.concatenate([inputs, jnp.ones_like(inputs[:, :1])], axis=1)


def _variances(
    posterior: Posterior, inputs: Float[Array, "B F"], scale: float
) -> Float[Array, "B K"]:
    """Variances of the logits along the eigenvectors of B."""
    exact = lax.Precision.HIGHEST
    along = jnp.matmul(_with_bias(inputs, scale), posterior.inputs, precision=exact)
    return jnp.matmul(jnp.square(along), posterior.variance, precision=exact)
