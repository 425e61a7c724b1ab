"""Whether a gRPC port lets in a caller that holds no token, asked with one plain HTTP/2 request: Ray brings no client that goes without.

The answer's status is read from the trailers, which a gRPC server sends uncompressed on a new connection.
"""

import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from types import MappingProxyType

ASK = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
"""What a stranger would ask a cluster's head first; it changes nothing."""
OPEN, UNAUTHENTICATED = 0, 16
TIMEOUT_S = 10.0
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 6, 7, 9
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_STATUS = re.compile(rb"\x0bgrpc-status[\x01\x02](\d{1,2})")


def status(
    address: str, method: str = ASK, headers: Mapping[str, str] = MappingProxyType({}), context: ssl.SSLContext | None = None
) -> int | None:
    """The gRPC status (0 is success, 16 is unauthenticated) of an empty call of `method` at `host:port`; None where none came.

    Raises:
        OSError: nobody answers there.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S) as plain:
        if context is None:
            return _call(plain, address, method, headers)
        with context.wrap_socket(plain, server_hostname=host) as wrapped:
            return _call(wrapped, address, method, headers)


def _call(connection: socket.socket, address: str, method: str, headers: Mapping[str, str]) -> int | None:
    fields = {":path": method, ":authority": address, "content-type": "application/grpc", "te": "trailers", **headers}
    block = b"\x83\x86" + b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())  # \x83 POST, \x86 http
    request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b"")
    connection.sendall(request + _frame(_HEADERS, _END_HEADERS, 1, block) + _frame(_DATA, _END_STREAM, 1, bytes(5)))
    for kind, flags, content in _frames(connection):
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            connection.sendall(_frame(kind, _ACK, 0, content if kind == _PING else b""))
        elif kind in (_HEADERS, _CONTINUATION) and (found := _STATUS.search(content)):
            return int(found[1])
        elif kind in (_RESET, _GOAWAY):
            break
    return None


def _frames(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Kind, flags and content of each frame, until the server ends the connection or falls silent."""
    while len(head := _read(connection, 9)) == 9:
        yield head[3], head[4], _read(connection, int.from_bytes(head[:3], "big"))


def _read(connection: socket.socket, size: int) -> bytes:
    content = b""
    try:
        while len(content) < size and (part := connection.recv(size - len(content))):
            content += part
    except (TimeoutError, ConnectionError):
        return b""
    return content


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def _text(value: str) -> bytes:
    """A literal of the header compression, uncompressed; one byte of length is enough for ours."""
    content = value.encode()
    length = bytes([len(content)]) if len(content) < 127 else bytes([127, len(content) - 127])
    return length + content
