"""A small app of the preview tests: HTTP on port 3000, an echo of bytes on port 9000, on ::1 alone HTTP on port 3001."""

import hashlib
import http.server
import socket
import socketserver
import threading


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(f"{self.command} {self.path} host={self.headers['Host']}".encode())

    def do_POST(self):
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            piece = self.rfile.read(min(left, 1 << 16))
            left -= len(piece)
            digest.update(piece)
        self.answer(digest.hexdigest().encode())

    def answer(self, body):
        self.send_response(418 if self.path == "/teapot" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


class Six(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


socketserver.ThreadingTCPServer.allow_reuse_address = True
servers = [
    http.server.ThreadingHTTPServer(("0.0.0.0", 3000), App),
    Six(("::1", 3001), App),
    socketserver.ThreadingTCPServer(("127.0.0.1", 9000), Echo),
]
for server in servers[1:]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
servers[0].serve_forever()
