"""The import graph of the package, parsed and not imported: data flow one way, and no circles.

Stages meet in the run directory alone, so scoring and attacking know nothing of training; what
calculates draws nothing; and stage 3 needs no JAX.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "lira_jax"
LONGEST = 500
# Stage 1, and what is of no use without it.
STAGE_1 = (
    "training",
    "loss_tracing",
    "shadow_models",
    "training_width",
    "optimization",
    "commands.train",
)
STAGE_2 = (
    "inference", "scoring", "label_only.asking", "trust.predicting", "commands.score",
)  # fmt: skip
STAGE_3 = (
    "attacking", "analysis", "attacks", "evaluation", "report", "figures", "findings", "score_set",
    "public_layout", "commands.attack", "label_only.attacks", "label_only.results",
    "label_only.answers", "label_only.outliers", "trust.attacks", "trust.calibration",
    "trust.judging", "trust.outputs", "trust.results",
)  # fmt: skip
# What calculates on saved scores; the rest of stage 3 shows what came out.
CALCULATES = (
    "attacks", "evaluation", "analysis", "score_set", "label_only.attacks", "label_only.results",
    "label_only.answers", "label_only.outliers", "trust.attacks", "trust.calibration",
    "trust.judging", "trust.outputs", "trust.results",
)  # fmt: skip
SHOWS = ("report", "figures")
CODE = ("lira_jax", "benchmarks", "docs", "tests", "launch")
NEEDS_JAX = ("jax", "jaxlib", "flax", "optax", "orbax")

Graph = Mapping[str, frozenset[str]]


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def runs_on_import(body: Iterable[ast.stmt]) -> Iterable[ast.stmt]:
    """Statements that importing a module runs: not the bodies of functions, nor type checking."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            yield from runs_on_import(statement.orelse)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody"):
                yield from runs_on_import(getattr(statement, name, []))
            for handler in getattr(statement, "handlers", []):
                yield from runs_on_import(handler.body)


def imports(path: Path, *, all_of_it: bool) -> set[str]:
    """The modules that one imports, inside its functions too if all of it is asked for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if all_of_it else runs_on_import(tree.body):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            # `from package import module` is of the module, `from module import name` of that.
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in modules() else str(node.module))
    return names


@cache
def graph(all_of_it: bool = True) -> Graph:
    arrows = {
        name: frozenset(imports(path, all_of_it=all_of_it) - {name})
        for name, path in modules().items()
    }
    # The public face hands on what it is asked for; importing it imports nothing.
    return arrows | {PACKAGE: frozenset()}


def room(name: str) -> str:
    """The folder or root module of the package that a module is in."""
    return ".".join(name.split(".")[:2])


def within(name: str, places: Iterable[str]) -> bool:
    full = [place if place.startswith(PACKAGE) else f"{PACKAGE}.{place}" for place in places]
    return any(name == place or name.startswith(f"{place}.") for place in full)


def path_to(start: str, goal: set[str], arrows: Graph) -> list[str]:
    """The shortest way along the arrows from a module to any of a set; empty if there is none."""
    ways, seen = [[start]], {start}
    for way in ways:
        for following in sorted(arrows.get(way[-1], ())):
            if following in goal:
                return [*way, following]
            if following not in seen:
                seen.add(following)
                ways.append([*way, following])
    return []


def circles(arrows: Graph) -> list[str]:
    return [" → ".join(way) for name in arrows if (way := path_to(name, {name}, arrows))]


def test_modules_import_each_other_in_no_circle():
    inner = {name: of & modules().keys() for name, of in graph().items()}
    assert not circles(inner)


def test_rooms_import_each_other_in_no_circle():
    rooms: dict[str, set[str]] = {}
    for name, of in graph().items():
        if name != PACKAGE:
            reached = {room(other) for other in of & modules().keys() - {PACKAGE}}
            rooms.setdefault(room(name), set()).update(reached - {room(name)})
    assert not circles({name: frozenset(of) for name, of in rooms.items()})


@pytest.mark.parametrize("stage", [STAGE_2, STAGE_3], ids=["scoring", "attacking"])
def test_no_arrow_goes_back_to_training(stage):
    training = {name for name in modules() if within(name, STAGE_1)}
    assert training
    back = [path_to(name, training, graph()) for name in modules() if within(name, stage)]
    assert not [" → ".join(way) for way in back if way]


def test_what_calculates_draws_nothing():
    shows = {name for name in modules() if within(name, SHOWS)} | {"matplotlib"}
    shows |= {name for of in graph().values() for name in of if name.startswith("matplotlib.")}
    ways = [path_to(name, shows, graph()) for name in modules() if within(name, CALCULATES)]
    assert not [" → ".join(way) for way in ways if way]


def test_stage_3_imports_no_jax():
    # Importing a module also runs the folders that it is in.
    arrows = {
        name: of | {other.rpartition(".")[0] for other in of if other.count(".") > 1}
        for name, of in graph(all_of_it=False).items()
    }
    jax = {name for of in arrows.values() for name in of if name.split(".")[0] in NEEDS_JAX}
    stage_3 = [name for name in modules() if within(name, (*STAGE_3, *CALCULATES))]
    ways = [path_to(name, jax, arrows) for name in stage_3]
    assert not [" → ".join(way) for way in ways if way]


def test_no_module_is_longer_than_a_reader_holds_in_mind():
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules().items()}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_every_document_cited_in_code_exists():
    cited = re.compile(r"\b(docs/[\w/-]+\.md|[A-Z][A-Z_]+\.md)\b")
    missing: dict[str, list[str]] = {}
    for path in (*ROOT.glob("*.py"), *(p for f in CODE for p in (ROOT / f).rglob("*.py"))):
        for name in cited.findall(path.read_text("utf-8")):
            if not (ROOT / name).exists():
                missing.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert not missing


def test_the_analysis_is_imported_where_neither_jax_nor_matplotlib_is_installed():
    script = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"jax", "jaxlib", "flax", "optax", "orbax", "matplotlib"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
import lira_jax.analysis.analyse
import lira_jax.analysis.epsilon
import lira_jax.analysis.target
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
