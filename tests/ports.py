"""Ports of this machine that stay free until a test's process takes them."""

import contextlib
import random
import socket
from pathlib import Path

ABOVE_RAY = 20_000  # its workers take ports from 10,002 to 19,999
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Different ports, none of which the system gives to a process that asks for any port."""
    given_from = int(RANGE.read_text().split()[0]) if RANGE.exists() else 32_768
    found: list[int] = []
    for port in random.SystemRandom().sample(range(ABOVE_RAY, given_from), k=1000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"fewer than {count} ports are free")


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
