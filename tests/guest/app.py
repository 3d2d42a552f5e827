"""A small app of the preview tests: HTTP on port 3000, on ::1 alone HTTP on port 3001, an echo of bytes on port 9000.

Only what is built into Python is imported: each module costs seconds where the guest's kernel is emulated. Run it with
`python3 -S -E`.
"""

import _socket as socket
import _thread
import zlib


def http(connection):
    """Answers a GET with its first line and host, a POST with the CRC-32 of its body; /teapot with a status of its own."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            piece = connection.recv(1 << 16)
            if not piece:
                return
            data += piece
        head, data = data.split(b"\r\n\r\n", 1)
        line, *fields = head.decode().split("\r\n")
        method, path, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, value in (field.split(":", 1) for field in fields)}
        left, crc = int(headers.get("content-length", 0)), 0
        while left:
            data = data or connection.recv(1 << 16)
            piece, data = data[:left], data[left:]
            left, crc = left - len(piece), zlib.crc32(piece, crc)
        body = f"{crc:08x}" if method == "POST" else f"{method} {path} host={headers['host']}"
        status = "418 Teapot" if path == "/teapot" else "200 OK"
        say(connection, f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


def echo(connection):
    while True:
        data = connection.recv(1 << 16)
        if not data:
            return
        say(connection, data)


def say(connection, data):
    while data:
        data = data[connection.send(data) :]


def run(handler, connection):
    try:
        handler(connection)
    except OSError:
        pass
    finally:
        connection.close()


def listen(family, address, handler):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(64)
    while True:
        descriptor, _ = listener._accept()
        _thread.start_new_thread(run, (handler, socket.socket(fileno=descriptor)))


_thread.start_new_thread(listen, (socket.AF_INET6, ("::1", 3001), http))
_thread.start_new_thread(listen, (socket.AF_INET, ("127.0.0.1", 9000), echo))
listen(socket.AF_INET, ("0.0.0.0", 3000), http)
