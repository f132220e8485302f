"""MemGuard in its strongest form: confidences that tell the predicted class and nothing else.

MemGuard (Jia et al., arXiv 1909.10594) adds noise to a model's confidences that leaves its label.
Choquette-Choo et al. (arXiv 2007.14321, section 5.1) defend with the end of that road: the
predicted class is given 1/K + 0.001, the rest is shared evenly by the others. For NumPy and JAX
arrays alike; imports neither JAX nor anything that does.
"""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float

# How much more than 1/K the predicted class is given.
MARGIN = 1e-3


def memguard(logits: Float[Any, "*batch K"]) -> Float[Any, "*batch K"]:
    """What a guarded model serves instead of its logits: log-probabilities of K ≥ 2 classes.

    The predicted class, the first of the greatest, is the same before and after for every input.

    Args:
        logits: a NumPy or JAX array.

    Returns:
        Two different values for each row, of the type of `logits`.
    """
    xp = logits.__array_namespace__()
    classes = logits.shape[-1]
    top = 1 / classes + MARGIN
    rest = (1 - top) / (classes - 1)
    predicted = xp.argmax(logits, axis=-1, keepdims=True) == xp.arange(classes)
    served = xp.where(predicted, math.log(top), math.log(rest))
    return xp.asarray(served, dtype=logits.dtype)
