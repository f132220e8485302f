"""The public code's evaluation, against a plain loop with SciPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_curve

from lira_jax import evaluation
from lira_jax.attacks import reference_code, references
from lira_jax.errors import InputError
from lira_jax.score_set import ScoreSet

NAMES = ("lira-online", "lira-online-global", "lira-offline", "lira-offline-global")


def masks_and_scores(models=9, examples=150, queries=2):
    rng = np.random.default_rng(0)
    keep = rng.random((models, examples)) < 0.5
    keep[0], keep[1] = True, False  # every example has a reference on each side
    noise = rng.normal(size=(models, examples, queries))
    return keep, noise * (1 + rng.random((examples, 1))) + 1.5 * keep[..., np.newaxis]


def plain(keep, scores, queries):
    """Each example in turn, each view in turn."""
    examples = keep.shape[1]
    inside = [[scores[n, e, :queries] for n in range(len(keep) - 1) if keep[n, e]]
              for e in range(examples)]  # fmt: skip
    outside = [[scores[n, e, :queries] for n in range(len(keep) - 1) if not keep[n, e]]
               for e in range(examples)]  # fmt: skip
    shortest_in, shortest_out = min(map(len, inside)), min(map(len, outside))
    inside = np.array([one[:shortest_in] for one in inside])
    outside = np.array([one[:shortest_out] for one in outside])
    result = {name: [] for name in (*NAMES, "global-threshold")}
    for e in range(examples):
        parts = {name: [] for name in NAMES}
        for q in range(queries):
            phi = scores[-1, e, q]
            a, b = inside[e, :, q], outside[e, :, q]
            log_out = norm.logpdf(phi, np.median(b), np.std(b) + 1e-30)
            log_in = norm.logpdf(phi, np.median(a), np.std(a) + 1e-30)
            parts["lira-online"].append(log_in - log_out)
            parts["lira-offline"].append(-log_out)
            std = np.std(inside) + 1e-30
            parts["lira-online-global"].append(
                norm.logpdf(phi, np.median(a), std) - norm.logpdf(phi, np.median(b), std)
            )
            std = np.std(outside) + 1e-30
            parts["lira-offline-global"].append(-norm.logpdf(phi, np.median(b), std))
        for name in NAMES:
            result[name].append(np.mean(parts[name]))
        result["global-threshold"].append(scores[-1, e, :queries].mean())
    return {name: np.array(values) for name, values in result.items()}


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("chunk_bytes", [2_000, 2**20])
def test_scores_and_figures_equal_a_plain_loop(queries, chunk_bytes, monkeypatch):
    monkeypatch.setattr(references, "CHUNK_BYTES", chunk_bytes)
    keep, scores = masks_and_scores()
    got = reference_code.attack(ScoreSet(scores, keep, None, "test"), queries)
    expected = plain(keep, scores, queries)
    assert list(got) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name][0], values, rtol=1e-11)
        figures = evaluation.reference_code_summary(evaluation.roc(got[name], keep[-1:]))
        fpr, tpr, _ = roc_curve(keep[-1], values)
        assert figures["balanced_accuracy"] == np.max(1 - (fpr + (1 - tpr)) / 2)
        for key, limit in evaluation.FPRS.items():
            assert figures["tpr_at_fpr"][key] == tpr[np.where(fpr < limit)[0][-1]]


def test_lists_are_cut_to_the_shortest():
    keep, scores = masks_and_scores()
    counts = keep[:-1].sum(axis=0)
    lengths = reference_code.list_lengths(ScoreSet(scores, keep, None, "test"))
    assert lengths == (counts.min(), (8 - counts).min())


@pytest.mark.parametrize(
    ("value", "word"), [(True, "every model but the last"), (False, "no model")]
)
def test_an_example_without_references_is_refused(value, word):
    keep, scores = masks_and_scores()
    keep[:-1, 7] = value
    with pytest.raises(InputError, match=f"^test: .*{word}.* example 7"):
        reference_code.list_lengths(ScoreSet(scores, keep, None, "test"))
