"""Defences, one in a file.

They differ in where they act, so there is no table of them in code:

| what a defence changes | where it is called |
|---|---|
| its setting | `config.py: DefenceConfig` |
| loss, gradient or batch | `optimization.py` |
| weights that training begins with, when it ends | `shadow_models.py`, `training.py` |
| the network itself, held-out images | `candidates.py` |
| answers at serving time | `scoring.py`, `label_only/attacks.py` |

Nothing here imports training.
"""
