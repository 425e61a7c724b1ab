"""A gRPC call by hand, answered by a server by hand: the status that came, or none."""

import contextlib
import socket
import threading

import pytest

from nas_attn import cluster, door
from nas_attn.errors import InputError, PoolError

SETTINGS = bytes(3) + b"\x04\x00" + bytes(4)


def headers(status, name=b"grpc-status"):
    block = b"\x88\x40" + bytes([len(name)]) + name + bytes([len(status)]) + status
    return len(block).to_bytes(3, "big") + b"\x01\x05" + (1).to_bytes(4, "big") + block


@pytest.fixture
def serve():
    """`serve(answer)` is the address of a server that reads a call and says `answer`."""
    servers = []

    def serve(answer):
        server = socket.create_server(("127.0.0.1", 0))

        def talk():
            connection, _ = server.accept()
            with connection:
                seen.append(connection.recv(4096))
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    while connection.recv(4096):
                        continue

        thread = threading.Thread(target=talk)
        thread.start()
        servers.append((server, thread))
        return f"127.0.0.1:{server.getsockname()[1]}"

    seen: list[bytes] = []
    serve.seen = seen
    yield serve
    for server, thread in servers:
        thread.join(10)
        server.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (SETTINGS + headers(b"16"), 16),
        (SETTINGS + bytes(3) + b"\x06\x00" + bytes(4) + headers(b"0"), 0),
        (SETTINGS + headers(b"7", b"other-field"), None),
        (SETTINGS + (4).to_bytes(3, "big") + b"\x07\x00" + bytes(8) + headers(b"0"), None),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", None),
        (b"", None),
    ],
)
def test_the_status_is_read(serve, answer, expected):
    assert door.status(serve(answer), headers={"authorization": "Bearer x"}) == expected
    assert b"PRI * HTTP/2.0" in serve.seen[0]
    assert door.ASK.encode() in serve.seen[0]


def test_nobody_there_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        door.status(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (SETTINGS + headers(b"0"), InputError, "answers a caller without a token; start it anew.*--insecure-cluster"),
        (SETTINGS + headers(b"12"), InputError, "without a token with status 12"),
        (b"", InputError, "with status None"),
    ],
)
def test_a_cluster_that_lets_strangers_in_is_refused(serve, monkeypatch, answer, kind, message):
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with pytest.raises(kind, match=message):
        cluster._require_closed(serve(answer))


def test_a_cluster_that_turns_strangers_away_is_taken(serve, monkeypatch):
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    cluster._require_closed(serve(SETTINGS + headers(b"16")))
    with pytest.raises(PoolError, match="must answer"):
        cluster._require_closed("127.0.0.1:1")
    monkeypatch.setenv("RAY_USE_TLS", "1")
    cluster._require_closed("127.0.0.1:1")  # no plain call gets there
