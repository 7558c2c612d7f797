"""Ports of this machine for processes that bind them later."""

import random
import socket
from pathlib import Path

LOCALHOST = "127.0.0.1"
# Lower ones belong to Ray's workers and to well-known servers.
_LOWEST, _FEWEST = 20_000, 1_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_dice = random.SystemRandom()


def free_port() -> int:
    """A port that nobody listens at, and that the kernel gives to nobody who asks for any.

    Who is told it binds it seconds later. Of the ports that the kernel gives out by itself another
    process may have it by then: every Ray takes dozens of those.
    """
    beyond = max(int(_RANGE.read_text().split()[0]), _LOWEST + _FEWEST)
    while True:
        port = _dice.randrange(_LOWEST, beyond)
        with socket.socket() as probe:
            try:
                probe.bind((LOCALHOST, port))
            except OSError:
                continue
            return port
