"""Attacks that see labels alone (Choquette-Choo et al., arXiv 2007.14321): what live models answer.

`answers.py` says what is asked, of which models and examples, and reads what was answered; it needs
no JAX, and nor do `attacks.py` (the attacks), `results.py` (how they are judged) and `outliers.py`.
The others ask: `transforms.py` (rotated, translated and noisy views), `hop_skip_jump.py` (distance
to the decision boundary from labels), `carlini_wagner.py` (the same from gradients), `asking.py`
(the part of the scoring stage that runs them).
"""
