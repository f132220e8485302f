"""Shapes in the package's signatures are checked wherever tests call it."""

from importlib import import_module
from importlib.util import find_spec

from jaxtyping import install_import_hook

# A bare machine with an accelerator may lack beartype (tests/conftest.py).
if find_spec("beartype"):
    import_module("tests.shapes")  # the hook finds it as an attribute of this package
    install_import_hook("lira_jax", "tests.shapes.checked")
