"""How well attack scores tell members from non-members: ROC, TPR at low FPR, intervals, decisions.

NumPy and SciPy only. What is here is used as `evaluation.NAME`; `judging` makes of it the entry of
an attack in `metrics.json`.
"""

from lira_jax.evaluation.bootstrap import Fold, Resamples, intervals
from lira_jax.evaluation.closed_form import clopper_pearson, delong, mean_and_interval
from lira_jax.evaluation.curves import (
    FEW_FALSE_POSITIVES,
    FPRS,
    Roc,
    auc,
    balanced_accuracy,
    expected_false_positives,
    few_false_positives,
    mean_over_targets,
    reference_code_summary,
    roc,
    summary,
    thin,
    tpr_at_fpr,
)
from lira_jax.evaluation.paired import Resampled, paired_differences, resampled
from lira_jax.evaluation.thresholds import (
    best_threshold,
    decisions,
    decisions_against,
    difference,
    shadow_thresholds,
    threshold_at_fpr,
)

__all__ = [
    "FEW_FALSE_POSITIVES", "FPRS", "Fold", "Resampled", "Resamples", "Roc", "auc",
    "balanced_accuracy", "best_threshold", "clopper_pearson", "decisions", "decisions_against",
    "delong", "difference",
    "expected_false_positives", "few_false_positives", "intervals", "mean_and_interval",
    "mean_over_targets", "paired_differences", "reference_code_summary", "resampled", "roc",
    "shadow_thresholds", "summary", "thin", "threshold_at_fpr", "tpr_at_fpr",
]  # fmt: skip
