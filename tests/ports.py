"""Ports for the servers of tests."""

import random
import socket
from contextlib import suppress

# Below the ports that the kernel hands to clients, so that no connection takes one between its choice and its use.
PORTS = range(15000, 32000)
_given: set[int] = set()


def free_port() -> int:
    """A port where nobody listens, and that no other call has been given."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
