"""A server of the toy within the test's own process, and plain HTTP to it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from medsft.inference.responder import Responder
from medsft.inference.server.app import make_app
from medsft.inference.server.generation import Served
from medsft.inference.server.limits import Limits
from medsft.inference.server.serve import make_server, serving

GREEDY = {"temperature": 0}
LIMITS = Limits(max_body_bytes=20_000, max_new_tokens=200, max_messages=20, max_rows=2, max_waiting=3)
# Wanders on without an end token for as long as it may, mostly.
ENDLESS = {"max_tokens": 200, "temperature": 9.0, "top_p": 1.0, "top_k": 0, "seed": 1}


@dataclass
class Server:
    """One that runs: its port and its models."""

    port: int
    models: list[Served]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method, path, body=None, headers=None):
        """Status, headers and body of the answer; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def ask(self, question, **settings):
        """Status and decoded JSON of a completion."""
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        status, _, body = self.request("POST", "/v1/chat/completions", {"messages": messages, **settings})
        return status, json.loads(body)

    def open_stream(self, question, **settings) -> socket.socket:
        """A connection on which a streamed answer was asked for, nothing read yet."""
        body = {"messages": [{"role": "user", "content": question}], "stream": True, **settings}
        content = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(head.encode() + content)
        return connection


def wait_until(condition, timeout_s=60.0):
    """Returns once the condition holds; fails after the time."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come true in time"
        time.sleep(0.01)


@contextmanager
def running(responders: dict[str, Responder], limits: Limits, key: str | None = None) -> Iterator[Server]:
    """Serves on a free port of this machine until the block ends."""
    models = serving(responders, limits)
    server = make_server(make_app(models, limits, key), "127.0.0.1", 0, limits)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Server(server.servers[0].sockets[0].getsockname()[1], models)
    finally:
        server.should_exit = True
        thread.join(60)
        for each in models:
            each.engine.close()
    assert not thread.is_alive()


def is_idle(server):
    return all(each.engine.num_running == each.engine.num_waiting == 0 for each in server.models)


def metric(server, name):
    _, _, body = server.request("GET", "/metrics")
    lines = [line for line in body.decode().splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
