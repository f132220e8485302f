"""When prediction scores mislead (Hintersdorf et al., arXiv 2111.09076): inputs that no model
trained on, calibrated predictions, and what attacks make of both (docs/methods.md, 5).
"""
