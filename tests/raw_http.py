"""HTTP by hand, byte for byte: for what well-behaved clients never send."""

import json
import socket
import struct


class RawConnection:
    def __init__(self, server, timeout_s=60):
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout_s)
        self._received = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data if isinstance(data, bytes) else data.encode())
        return self

    def end_input(self):
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def reset(self):
        """Leaves as a killed process does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _receive(self):
        data = self.socket.recv(1 << 16)
        self._received += data
        return bool(data)

    def read_until(self, mark):
        while mark not in self._received:
            if not self._receive():
                raise ConnectionError(f"the connection ended after {self._received!r}")
        head, _, self._received = self._received.partition(mark)
        return head

    def read_exactly(self, count):
        while len(self._received) < count:
            if not self._receive():
                raise ConnectionError(f"the connection ended after {self._received!r}")
        data, self._received = self._received[:count], self._received[count:]
        return data

    def read_to_end(self):
        while self._receive():
            pass
        data, self._received = self._received, b""
        return data

    def response(self, head_only=False):
        """(status, headers, body) of the next response; interim ones are skipped."""
        status = 100
        while status == 100:
            first, *lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
            version, code, _ = first.split(" ", 2)
            assert version == "HTTP/1.1"
            status = int(code)
        headers = {}
        for line in lines:
            name, value = line.split(":", 1)
            headers[name.lower()] = value.strip()
        if head_only or status == 204:
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, self._chunked_body()
        if "content-length" in headers:
            return status, headers, self.read_exactly(int(headers["content-length"]))
        return status, headers, self.read_to_end()

    def _chunked_body(self):
        body = b""
        while size := int(self.read_until(b"\r\n"), 16):
            body += self.read_exactly(size)
            assert self.read_exactly(2) == b"\r\n"
        assert self.read_until(b"\r\n") == b""
        return body

    def is_closed(self, within_s=5):
        """True when the server closes the connection, and says nothing more."""
        self.socket.settimeout(within_s)
        try:
            return self._received == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


def post(path, body, *headers):
    """A POST request's bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: nibble", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def get(path, *headers, method="GET", version="1.1"):
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: nibble", *headers, "", ""]).encode()


def exchange(server, data, end_input=False):
    """What the server answers to these bytes."""
    with RawConnection(server) as connection:
        connection.send(data)
        if end_input:
            connection.end_input()
        return connection.response()
