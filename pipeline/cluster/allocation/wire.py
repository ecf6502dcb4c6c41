"""Messages between the nodes of a training: JSON objects, one a line, over a TCP connection."""

import json
import os
import select
import socket
import time
from typing import Any

_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""The system notices in 40 s that the other machine is gone; that a process there has ended, at once."""
_UNANSWERED_MS = 40_000
_LARGEST = 16 * 2**20


class Wire:
    """One end of a connection. Every method raises ConnectionError once the other end is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._read = connection, b""
        connection.settimeout(_UNANSWERED_MS / 1000)  # of sending; before receiving it is waited for
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MS)

    @property
    def own_address(self) -> str:
        """Of this end: how the other machine reaches this one."""
        address: str = self._socket.getsockname()[0]
        return address

    def send(self, kind: str, **facts: Any) -> None:
        try:
            self._socket.sendall(json.dumps({"kind": kind, **facts}).encode() + b"\n")
        except OSError as error:
            raise ConnectionError(str(error)) from error

    def receive(self, seconds: float | None) -> dict[str, Any] | None:
        """The next message; None if none comes within this time. `None` seconds: waits for one."""
        end = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._read:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._socket], [], [], left)[0]:
                return None
            self._read_more()
        line, self._read = self._read.split(b"\n", 1)
        return self._parsed(line)

    def _read_more(self) -> None:
        try:
            received = self._socket.recv(65536)
        except OSError as error:
            raise ConnectionError(str(error)) from error
        if not received or len(self._read) > _LARGEST:
            raise ConnectionError("the connection was closed")
        self._read += received

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise ConnectionError("not a message of this program") from error
        if not isinstance(message, dict) or "kind" not in message:
            raise ConnectionError("not a message of this program")
        return message

    def close(self) -> None:
        self._socket.close()


def interface_of(address: str) -> str | None:
    """The network interface that has this address, such as eth0."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None


def network_environment(address: str) -> dict[str, str]:
    """What tells gloo the network on which the nodes reach each other; what the profile sets counts more.

    By itself gloo takes the address that the host's name stands for, which on many machines is 127.0.1.1.
    """
    name = interface_of(address)
    return {} if name is None or "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": name}


def free_port(address: str) -> int:
    """A port of this machine on which nothing listens now."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        port: int = listener.getsockname()[1]
        return port
