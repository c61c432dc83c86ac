"""Ports for servers that are told where to listen before they start."""

import fcntl
import socket
import tempfile
from pathlib import Path
from typing import TextIO

PORTS = range(20_000, 28_000)
"""Below the ports that the system gives to whoever asks for any."""

_held: list[TextIO] = []


def free_port() -> int:
    """
    A port on loopback that nobody has, and that no other caller gets while this process runs:
    a locked file stands for it.
    """
    folder = Path(tempfile.gettempdir()) / "sloserve-ports"
    folder.mkdir(mode=0o777, exist_ok=True)
    for port in PORTS:
        lock = (folder / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        return port
    raise RuntimeError(f"no port is free from {PORTS.start} to {PORTS.stop - 1}")
