"""Ports for servers that are told where to listen before they start."""

import fcntl
import os
import socket
import tempfile
from pathlib import Path

PORTS = range(20_000, 28_000)
"""Below the ports that the system gives to whoever asks for any."""


def free_port() -> int:
    """
    A port on loopback that nobody has, and that no other caller gets while this process runs:
    a locked file stands for it.
    """
    folder = Path(tempfile.gettempdir()) / "sloserve-ports"
    folder.mkdir(mode=0o777, exist_ok=True)
    for port in PORTS:
        lock = os.open(folder / str(port), os.O_WRONLY | os.O_CREAT, 0o666)  # until we end
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            continue
        return port
    raise RuntimeError(f"no port is free from {PORTS.start} to {PORTS.stop - 1}")
