"""No import runs upward, reward workers stay free of JAX, and no module grows too long."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# DESIGN.md, section 1: what each package may import of ours, beside itself.
ALLOWED: dict[str, set[str]] = {
    "protos": set(),
    "vision.models": set(),
    "vision.data": set(),
    "vision.metrics": set(),
    "vision.tasks": {"vision.models", "vision.data", "vision.metrics"},
    "replay": {"protos"},
    "rewards": {"vision", "replay", "protos"},
    "actors": {"vision", "replay", "protos"},
    "learner": {"vision", "replay", "protos"},
    "deploy": {"vision", "replay", "protos", "rewards", "actors", "learner", "configs"},
}
OURS = {package.partition(".")[0] for package in ALLOWED} | {"configs"}
NOT_PRODUCT = {"tests", "benchmarks", "experiments", "docs"}
GENERATED = "_pb2.py"
LONGEST = 400


def modules(*roots: str) -> list[Path]:
    return sorted(path for root in roots for path in (REPOSITORY / root).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those inside functions too."""
    package = path.relative_to(REPOSITORY).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield node.lineno, module
            # `from vision import tasks` imports a package by its name, too.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def upward(package: str) -> list[str]:
    allowed = ALLOWED[package] | {package}
    faults = []
    for path in modules(package.replace(".", "/")):
        for line, module in imported(path):
            if module.partition(".")[0] not in OURS | NOT_PRODUCT:
                continue
            parents = {module.partition(".")[0]} if module in {"vision"} else set()
            if any(within(module, name) for name in allowed) or parents:
                continue
            faults.append(f"{path.relative_to(REPOSITORY)}:{line} imports {module}")
    return faults


@pytest.mark.parametrize("package", ALLOWED)
def test_no_import_runs_upward(package):
    assert modules(package.replace(".", "/")), f"{package} has no modules"
    assert upward(package) == []


def test_every_module_of_the_product_belongs_to_a_package_with_rules():
    roots = sorted({package.partition(".")[0] for package in ALLOWED})
    for path in modules(*roots):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        bare = path.name == "__init__.py" and not path.read_text().strip()
        assert bare or any(within(name, package) for package in ALLOWED), name


def test_the_rules_have_no_cycle():
    def reached(package: str) -> set[str]:
        below = {p for name in ALLOWED.get(package, ()) for p in ALLOWED if within(p, name)}
        return below.union(*(reached(name) for name in below))

    for package in ALLOWED:
        assert package not in reached(package)


@pytest.mark.parametrize(
    "module",
    [
        "rewards.worker",
        "rewards.captioning",
        "rewards.combine",
        "rewards.colorization",
        "rewards.detection",
        "rewards.human_page",
        "rewards.remote",
        "rewards.score",
        "rewards.panoptic",
        "rewards.score_panoptic",
        "rewards.score_captioning",
        "rewards.score_colorization",
        "rewards.service",
        "vision.tasks.captioning",
        "vision.tasks.colorization",
        "vision.tasks.detection",
        "vision.tasks.panoptic",
        "vision.tasks.registry",
        "vision.tasks.uvim",
        "replay.memory",
        "replay.lease_keeper",
        "protos.trajectory",
    ],
)
def test_what_reward_workers_import_does_not_bring_jax(module):
    assert imported_of({"jax", "flax", "optax", "torch"}, module) == "[]"


@pytest.mark.parametrize("module", ["learner.tune", "learner.supervised", "deploy.controller"])
def test_what_a_learner_imports_does_not_bring_torch(module):
    assert imported_of({"torch"}, module) == "[]"


def test_what_every_process_imports_does_not_bring_numba():
    """A metric brings it where it is computed: it is a tenth of what a sampler takes to start."""
    assert imported_of({"numba"}, "deploy.processes") == "[]"


def imported_of(unwanted: set[str], module: str) -> str:
    """Those that a new Python has imported after `module`."""
    code = f"import sys, {module}; print(sorted({unwanted} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_modules_are_short_enough_to_read():
    roots = {package.partition(".")[0] for package in ALLOWED} | NOT_PRODUCT
    lengths = {
        str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines())
        for path in modules(*sorted(roots))
        if not path.name.endswith(GENERATED)
    }
    assert len(lengths) > 50
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
