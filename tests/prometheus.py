"""A real Prometheus, Debian's, for tests."""

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.ports import free_port

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
MISSING = (
    None if PROMETHEUS and PROMTOOL else "no prometheus and promtool: apt-get install prometheus"
)
WAIT = 60.0


def promtool(*arguments: str) -> str:
    """What promtool says; it must be content."""
    assert PROMTOOL is not None, MISSING
    result = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


class Prometheus:
    """A server that answers at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query now."""
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result

    def label_values(self, label: str, series: str) -> list[str]:
        """What a label is on some series, as Grafana asks for a variable of its dashboards."""
        values: list[str] = self.ask(f"label/{label}/values", **{"match[]": series})
        return values

    def value(self, expression: str) -> float | None:
        """The one value of a query; None where there is no sample."""
        samples = self.query(expression)
        assert len(samples) <= 1, samples
        return float(samples[0]["value"][1]) if samples else None


@contextmanager
def prometheus(directory: Path, targets: list[str], rules: Path) -> Iterator[Prometheus]:
    """A server that scrapes and evaluates every second; ends with the block."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": targets}]}],
    }
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    promtool("check", "config", str(file))
    log = (directory / "prometheus.log").open("wb")
    process = subprocess.Popen(
        [
            str(PROMETHEUS),
            f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=log,
        env=os.environ | {"GOMAXPROCS": "1"},
    )
    try:
        _until_ready(f"http://127.0.0.1:{port}", process, directory / "prometheus.log")
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(WAIT)
        log.close()


def _until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + WAIT
    while True:
        try:
            urllib.request.urlopen(f"{url}/-/ready", timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
