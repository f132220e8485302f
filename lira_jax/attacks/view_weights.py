"""Weights of views: by which of their weighted means members and non-members differ most.

Views are not worth the same. A network that was trained on images as they are knows these by heart,
and their mirror images less, so that a plain mean wastes what the first view tells; views that
agree with each other tell less together than their number promises.

Of examples with references on both sides, with d the difference between the means of IN and OUT
scores by view, [Q], and S the covariance of scores about these means, pooled over models, the
weights are w ∝ (mean of S/c)⁻¹ (mean of d/c), Fisher's discriminant, with c the example's noise,
that loud examples do not outvote quiet ones. The first of RIDGES, as a share of the mean variance,
that keeps weights within LIMIT is added to S; it draws them towards what each view tells by itself.
Weights add up to 1, so that scores keep φ's unit.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

RIDGES = (0.03, 0.3, 3.0)
# Where no ridge keeps weights below, the difference is no more than chance, and they are those of
# least variance, for which no mask is read.
LIMIT = 3.0


def find(views: Float[np.ndarray, "N C Q"], keep: Bool[np.ndarray, "N C"]) -> np.ndarray:
    """Weights of views, [Q].

    Args:
        views: φ, less levels of models; of references alone.
        keep: their masks.
    """
    queries = views.shape[2]
    equal = np.full(queries, 1 / queries)
    both = keep.any(axis=0) & ~keep.all(axis=0)
    if queries == 1 or both.sum() < 2 * queries:
        return equal
    views, keep = views[:, both], keep[:, both]
    count_in = keep.sum(axis=0)
    count_out = len(keep) - count_in
    inside = np.einsum("nc,ncq->cq", keep, views) / count_in[:, np.newaxis]
    outside = np.einsum("nc,ncq->cq", ~keep, views) / count_out[:, np.newaxis]
    difference = inside - outside
    if len(keep) > 2:
        about = views - np.where(keep[..., np.newaxis], inside, outside)
        covariance = np.einsum("ncq,ncp->cqp", about, about) / (len(keep) - 2)
    else:  # of one reference a side: what differences vary by, half of which is either's
        about = difference - difference.mean(axis=0)
        covariance = np.einsum("cq,cp->cqp", about, about) / 2
    noise = np.einsum("cqq->c", covariance) / queries
    noise = noise + np.median(noise)
    if not noise.min() > 0:
        return equal
    common = (covariance / noise[:, np.newaxis, np.newaxis]).mean(axis=0)
    ridge = np.trace(common) / queries * np.eye(queries)
    apart = (difference / noise[:, np.newaxis]).mean(axis=0)
    for aim in (apart, np.ones(queries)):
        for share in RIDGES:
            weights = np.linalg.solve(common + share * ridge, aim)
            if weights.sum() > 0 and np.abs(weights).max() <= LIMIT * weights.sum():
                return weights / weights.sum()
    return equal
