"""Messages that lie end as errors and have no effect, and nothing that comes in is executed."""

import ast
import itertools
from pathlib import Path

import pytest

from benchmarks.hostile import COMBINATIONS, EXPECTED, HEALTH, REFLECTION, Sender, run
from protos import replay_pb2 as pb
from tests.hostile import Mutator, fields
from tests.redis_server import MISSING

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("actors", "deploy", "learner", "protos", "replay", "rewards", "vision")
RUNS_DATA = {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "yaml.load_all",
             "yaml.unsafe_load", "yaml.full_load"}  # fmt: skip
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


@pytest.mark.parametrize(("queue", "mode"), COMBINATIONS)
def test_mutated_messages_have_no_effect_and_every_service_lives(tmp_path, queue, mode):
    """A short run of what `benchmarks/hostile.py` does very often."""
    if queue == "redis" and MISSING is not None:
        pytest.skip(MISSING)
    figures = run(300, 1, tmp_path, queue, mode)
    assert figures["messages"] == 300
    assert set(figures["statuses"]) <= EXPECTED
    assert {"OK", "INVALID_ARGUMENT", "UNAUTHENTICATED"} <= set(figures["statuses"])
    asked = {name.split(" ")[0] for name in figures["by_service"]}
    assert {service.split(".")[-1] for service in (HEALTH, REFLECTION)} < asked


def test_the_mutator_reads_messages_and_changes_them_by_its_seed():
    message = pb.AckRequest(ordinals=[1, 2**63], epoch="e").SerializeToString()
    assert [(number, kind) for number, kind, _ in fields(message)] == [(1, 2), (3, 2)]
    one, same, other = ([Mutator(seed).mutate(message) for _ in range(20)] for seed in (1, 1, 2))
    assert one == same != other


def test_a_mutation_makes_no_caller_of_another():
    """Whom the server would then refuse as one that it knows."""
    sender = Sender("127.0.0.1:1")
    names = [sender.call().caller for _ in range(300)]
    for one, other in itertools.combinations(names, 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) > 4


def executed(tree: ast.AST) -> list[str]:
    """Calls and imports in a module by which data could become code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            arguments = {word.arg: ast.unparse(word.value) for word in node.keywords}
            unsafe_yaml = name in (
                "yaml.load",
                "yaml.unsafe_load",
                "yaml.full_load",
                "yaml.load_all",
            )
            unsafe_array = arguments.get("allow_pickle", "False") != "False"
            if (
                name in RUNS_DATA
                or unsafe_yaml
                or unsafe_array
                or name in ("torch.load", "jnp.load")
            ):
                found.append(f"{name}({arguments})")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_in_our_packages_makes_code_of_data(package):
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        assert executed(ast.parse(path.read_text())) == [], path


def test_what_makes_code_of_data_would_be_found():
    for line in ("import pickle", "yaml.load(text)", "eval(text)", "np.load(p, allow_pickle=True)",
                 "from marshal import loads", "exec(text)", "torch.load(p)"):  # fmt: skip
        assert executed(ast.parse(line)), line
