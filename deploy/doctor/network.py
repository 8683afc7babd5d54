"""Which addresses answer, and Redis's settings."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from deploy.doctor.finding import Finding, fail, info, ok, warn

PATIENCE_SECONDS = 5.0
REMOTE_REWARD = "rewards.remote:RemoteReward"


def check_port(what: str, address: str, fix: str) -> Finding:
    """Whether something listens at HOST:PORT.

    Args:
      what: should be there.
      address: of it.
      fix: what starts it.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not host:
        return fail(what, f"{address!r} is no HOST:PORT", "give it as HOST:PORT")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE_SECONDS):
            return ok(what, f"{address} answers")
    except socket.gaierror as error:
        return fail(what, f"{host} is not known: {error}", "check the name, or use its number")
    except TimeoutError:
        return fail(
            what,
            f"{address} does not answer within {PATIENCE_SECONDS:g} s",
            f"let port {port} through the firewall or NetworkPolicy between here and {host}",
        )
    except OSError as error:
        return fail(what, f"nothing listens at {address}: {error.strerror or error}", fix)


def check_dashboard(address: str, ray_version: str, headers: Mapping[str, str]) -> Finding:
    """Whether Ray's dashboard answers, which job submission needs; and with which version.

    Args:
      address: HOST:PORT, or http://HOST:PORT.
      ray_version: of this machine.
      headers: with the cluster's token.
    """
    base = _base(address)
    request = urllib.request.Request(f"{base}/api/version", headers=dict(headers))
    fix = (
        "start the head with --include-dashboard true --dashboard-host 0.0.0.0, or reach it by "
        "`kubectl port-forward`; only `submit` and the pages need it"
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            version = json.load(answer).get("ray_version")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return fail(
                "dashboard",
                f"{base} refuses the token (HTTP {error.code})",
                "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the "
                "cluster's token",
            )
        return warn("dashboard", f"{base} answers HTTP {error.code}", fix)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return warn("dashboard", f"{base} does not answer: {reason}", fix)
    if version != ray_version:
        return fail(
            "dashboard",
            f"{base} is of Ray {version}, this machine has {ray_version}",
            f"pip install ray=={version}, or upgrade the cluster",
        )
    return ok("dashboard", f"{base} answers, Ray {version}")


def check_graphs(address: str, headers: Mapping[str, str]) -> list[Finding]:
    """Whether the dashboard's graphs have what they are drawn from, and by.

    Args:
      address: of the dashboard, which answers.
      headers: with the cluster's token.
    """
    found = []
    for what, variable in (("Prometheus", "RAY_PROMETHEUS_HOST"), ("Grafana", "RAY_GRAFANA_HOST")):
        url = f"{_base(address)}/api/{what.lower()}_health"
        request = urllib.request.Request(url, headers=dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=2 * PATIENCE_SECONDS) as answer:
                found.append(ok(what, str(json.load(answer).get("msg", "answers"))))
        except (OSError, ValueError) as error:
            found.append(
                info(
                    what,
                    f"the dashboard does not reach it ({error}): its graphs stay empty",
                    f"start it, and the head with {variable}=http://HOST:PORT: docs/observability",
                )
            )
    return found


def _base(address: str) -> str:
    return address if "://" in address else f"http://{address}"


def reward_servers(rewards: Mapping[str, Any]) -> list[str]:
    """Addresses of a config's rewards that are computed elsewhere."""
    return [
        term["options"]["address"]
        for term in rewards["terms"]
        if term["path"] == REMOTE_REWARD and "address" in term.get("options", {})
    ]


def check_redis(pacing: Any) -> list[Finding]:
    """Whether the Redis of `replay.url` answers, and may hold a queue.

    Args:
      pacing: the config's `replay`.
    """
    from contextlib import closing

    from deploy.queues import redis_connection
    from replay.queue import QueueUnavailable
    from replay.redis_fitness import RedisUnfit, look_at

    patient = pacing.model_copy(update={"patience_seconds": PATIENCE_SECONDS})
    try:
        connection = redis_connection(patient)
    except ValueError as error:
        return [fail("Redis", str(error), "set what replay.password_env or replay.ca_file names")]
    with closing(connection):
        try:
            doubts = look_at(connection)
        except QueueUnavailable as error:
            return [fail("Redis", str(error), "start it, and check replay.url and its user")]
        except RedisUnfit as error:
            return [fail("Redis", str(error), "set that, then `redis-cli CONFIG REWRITE`")]
    if doubts:
        return [warn("Redis", doubt, "set it in redis.conf") for doubt in doubts]
    return [ok("Redis", f"{connection.name} answers, and its settings lose nothing")]
