"""What the terminal shows, beside what `tests/analysis/test_analyse.py` looks at."""

from __future__ import annotations

import copy

from lira_jax.report import terminal
from tests.trust import synthetic


def test_the_terminal_names_what_fools_the_maximum_score_and_the_best_calibration(tmp_path):
    found = copy.deepcopy(dict(synthetic.findings().metrics))
    trust = found["trust"]
    trust["calibrations"][1]["nonmembers"] |= {"ece": 0.0123, "ece_ci": [0.01, 0.02]}
    text = terminal.summary(found, tmp_path)
    assert "Falsely called members, of uniform, in words: max-score 100.0 (" in text
    assert "Calibration error on non-members, by calibration: none " in text
    assert ", T fitted 1.23 (1.00–2.00)." in text
    assert "Not run: Laplace, probit, not predicted" in text
    bare = found | {"trust": trust | {"kinds": [], "calibrations": trust["calibrations"][:1]}}
    text = terminal.summary(bare, tmp_path)
    assert "Falsely called" not in text
    assert "T fitted" not in text
