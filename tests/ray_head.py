"""A Ray head of one's own, started as an operator does, on free ports; ended by process ids."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
)

from tests.ports import free_ports

REPOSITORY = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4
START_SECONDS = 120.0


@dataclass
class Head:
    """Where it is.

    Attributes:
      address: of its GCS; `jobs`: of its job server.
      environment: for the processes of its users, with its token.
      process: `ray start --block`, which ends the head.
    """

    address: str
    jobs: str
    environment: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None

    def run(
        self, *command: str, cwd: Path, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command of this virtual environment as a user of the cluster."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *command: str, cwd: Path) -> subprocess.Popen[str]:
        """The same, without waiting for its end."""
        return subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@contextlib.contextmanager
def ray_head(
    num_cpus: int = 8,
    autoscaling: Mapping[str, Any] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Head]:
    """A head with token authentication, its dashboard and job server.

    Args:
      num_cpus: what it offers.
      autoscaling: node types for Ray's autoscaler v2 over its fake provider: raylets on this
        machine that come and go.
      variables: of the head's own environment.
    """
    temporary = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # a path of sockets must be short
    port, dashboard, client, agent = free_ports(4)
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_worker_niceness": "0",
    }
    for inherited in ("PYTHONPATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        environment.pop(inherited, None)
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", f"--port={port}"),
        *(f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *(f"--num-cpus={num_cpus}", f"--temp-dir={temporary}", "--disable-usage-stats"),
        "--labels=pool=head",
        # Every Ray of a machine would take the same port for this.
        *(f"--dashboard-agent-listen-port={agent}", "--object-store-memory=200000000"),
    ]
    extra = dict(variables or {})
    if autoscaling is not None:
        config = temporary / "autoscaling.json"
        config.write_text(json.dumps(_autoscaling(autoscaling, num_cpus, f"127.0.0.1:{port}")))
        command += [f"--autoscaling-config={config}", "--node-ip-address=127.0.0.1"]
        extra |= {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
    log = (temporary / "start.log").open("w")
    process = subprocess.Popen(
        command, env=environment | extra, stdout=log, stderr=log, start_new_session=True
    )
    try:
        # The agent takes the jobs; it comes last, and Ray's own command waits 10 s for it.
        for needed in (dashboard, agent):
            _wait_for(needed, process, temporary / "start.log")
        jobs = f"http://127.0.0.1:{dashboard}"
        yield Head(f"127.0.0.1:{port}", jobs, environment, process)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        _end_all_of(str(temporary), f":{port}")
        log.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _autoscaling(node_types: Mapping[str, Any], num_cpus: int, address: str) -> dict[str, Any]:
    head = {"resources": {"CPU": num_cpus}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "fake",
        "max_workers": 8,
        "idle_timeout_minutes": 0.3,  # longer than a learner takes to start
        "provider": {
            # As "fake_multinode" it wants defaults that Ray's wheel does not bring.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "disable_node_updaters": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
        },
        "available_node_types": {**node_types, FAKE_HEAD_NODE_TYPE: head},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "upscaling_speed": 1.0,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "setup_commands": [],
        "initialization_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _end_all_of(*marks: str) -> None:
    """Ends the processes whose command lines name this head: its own, those of other nodes."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            arguments = (
                (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            if "ray" in arguments and any(mark in arguments for mark in marks):
                os.kill(int(entry.name), signal.SIGKILL)
