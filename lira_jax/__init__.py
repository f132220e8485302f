"""Membership inference by likelihood ratio, with shadow models trained in parallel in JAX.

What most programs need has a name here and is imported at its first use: `import lira_jax` itself
imports neither JAX nor SciPy nor matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lira_jax.analysis.analyse import analyse as analyse
    from lira_jax.attacking import attack as attack
    from lira_jax.config import AttackConfig as AttackConfig
    from lira_jax.config import Experiment as Experiment
    from lira_jax.errors import InputError as InputError
    from lira_jax.score_set import ScoreSet as ScoreSet
    from lira_jax.score_set import logit_scaled as logit_scaled
    from lira_jax.score_set import read_npz as read_npz

__version__ = "0.1.0"

_MODULES = {
    "AttackConfig": "config",
    "Experiment": "config",
    "InputError": "errors",
    "ScoreSet": "score_set",
    "analyse": "analysis.analyse",
    "attack": "attacking",
    "logit_scaled": "score_set",
    "read_npz": "score_set",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
