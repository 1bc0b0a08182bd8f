"""The server under clients as they are: many, slow, silent, leaving, and an engine that fails."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chat_toy import PAIRS
from served import ENDLESS, GREEDY, LIMITS, is_idle, metric, running, wait_until

from medsft.inference.decoding import Decoder
from medsft.inference.responder import open_responder
from medsft.inference.sampling import Sampling
from medsft.inference.server.engine import FairQueue, Stopped, Ticket
from medsft.inference.server.limits import Guard, Limits

QUESTION, ANSWER = PAIRS[1].query, PAIRS[1].response


@pytest.fixture(scope="module")
def responder(chat_model_dir):
    return open_responder(chat_model_dir, device="cpu")


@pytest.fixture(scope="module")
def server(responder):
    with running({"tuned": responder, "base": responder}, LIMITS) as server:
        yield server


@pytest.fixture
def slowly(monkeypatch):
    """Each step of a decoder takes a little while, as a real model's does."""
    step = Decoder.step

    def slow_step(self):
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(Decoder, "step", slow_step)


def test_a_full_line_is_told(server, slowly):
    streams = [server.open_stream(QUESTION, **ENDLESS) for _ in range(LIMITS.max_rows + LIMITS.max_waiting)]
    engine = server.models[0].engine
    wait_until(lambda: (engine.num_running, engine.num_waiting) == (LIMITS.max_rows, LIMITS.max_waiting))
    status, headers, body = server.request(
        "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}
    )
    assert (status, headers["Retry-After"]) == (429, "5")
    assert "3 requests are waiting" in json.loads(body)["error"]["message"]
    assert server.ask("发烧呢？", model="base", **GREEDY)[0] == 200  # the other model is free
    for stream in streams:
        stream.close()
    wait_until(lambda: is_idle(server))


def test_clients_take_turns():
    line = FairQueue()
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        line.put(Ticket(name[0], [], None, lambda item: None))
    taken = [line.take().client for _ in range(3)]
    line.put(Ticket("d", [], None, lambda item: None))
    assert [*taken, *(line.take().client for _ in range(4))] == ["a", "b", "c", "a", "b", "d", "a"]
    assert len(line) == 0
    with pytest.raises(IndexError):
        line.take()


# --- clients that leave, generations that fail


def test_a_client_that_leaves_stops_its_generation(server, slowly):
    engine = server.models[0].engine
    tokens = metric(server, "medsft_generated_tokens_total")
    with server.open_stream(QUESTION, **ENDLESS) as reading:
        data = b""
        while b"data: " not in data:
            data += reading.recv(4096)
    plain = server.open_stream(QUESTION, **{**ENDLESS, "stream": False})
    wait_until(lambda: engine.num_running >= 1)
    plain.close()
    streams = [server.open_stream(QUESTION, **ENDLESS) for _ in range(LIMITS.max_rows + 1)]
    wait_until(lambda: engine.num_waiting == 1)
    streams[-1].close()  # one in line
    wait_until(lambda: engine.num_waiting == 0)
    assert engine.num_running == LIMITS.max_rows
    for stream in streams:
        stream.close()
    wait_until(lambda: is_idle(server))
    assert metric(server, "medsft_generated_tokens_total") - tokens < 3 * ENDLESS["max_tokens"]
    assert metric(server, 'medsft_requests_total{model="tuned",outcome="left"}') > 0


def test_a_failing_generation_is_told_and_the_next_works(server, monkeypatch):
    def fail(self):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "step", fail)
        status, told = server.ask(QUESTION, **GREEDY)
        assert (status, told["error"]["type"]) == (500, "server_error")
        with server.open_stream(QUESTION, **GREEDY) as stream:
            data = b""
            while b"server_error" not in data:
                data += stream.recv(4096)
            assert b"[DONE]" not in data
        patched.setattr(Decoder, "add", lambda *arguments: fail(None))
        assert server.ask(QUESTION, **GREEDY)[0] == 500
    assert server.ask(QUESTION, **GREEDY)[1]["choices"][0]["message"]["content"] == ANSWER


def test_an_error_while_a_client_leaves_is_told_and_the_next_works(server, slowly, monkeypatch):
    leave = Decoder.leave

    def fail_to_leave(self, rows):
        if rows:
            raise RuntimeError("out of memory")
        leave(self, rows)

    engine = server.models[0].engine
    first, second = (server.open_stream(QUESTION, **ENDLESS) for _ in range(2))
    wait_until(lambda: engine.num_running == 2)
    with monkeypatch.context() as patched, second:
        patched.setattr(Decoder, "leave", fail_to_leave)
        first.close()
        data = b""
        while b"server_error" not in data:
            received = second.recv(4096)
            assert received, data
            data += received
    assert server.ask(QUESTION, **GREEDY)[1]["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_has_ended(responder, monkeypatch):
    """An error that no answer is to blame for ends it: who waits is told, who comes later too."""
    told = {"running": [], "deaf": [], "waiting": []}

    def deaf(item):
        told["deaf"].append(item)
        if isinstance(item, Exception):
            raise RuntimeError("Event loop is closed")

    with running({"toy": responder}, LIMITS) as server:
        (served,) = server.models
        monkeypatch.setattr(Decoder, "step", lambda self: time.sleep(0.01) or [])
        prompt, _ = responder.prompt_ids(QUESTION, (), 40)
        for name, deliver in {**{name: items.append for name, items in told.items()}, "deaf": deaf}.items():
            served.engine.submit(Ticket(name, prompt, Sampling(40, greedy=True), deliver))
        wait_until(lambda: (served.engine.num_running, served.engine.num_waiting) == (2, 1))

        def end(self):
            raise SystemExit

        monkeypatch.setattr(Decoder, "step", end)
        wait_until(lambda: not served.engine.is_alive)
        assert all(isinstance(items[-1], Stopped) for items in told.values())
        with pytest.raises(RuntimeError, match="the server was stopped"):
            served.engine.submit(Ticket("late", prompt, Sampling(40), told["waiting"].append))
        status, answer = server.ask(QUESTION, **GREEDY)
        assert (status, answer["error"]["type"]) == (503, "server_error")
        assert server.request("GET", "/healthz")[0] == 503


def is_closed(connection):
    """By the other end, which what is sent to it in the same instant makes a reset."""
    try:
        return connection.recv(4096) == b""
    except ConnectionResetError:
        return True


def test_connections_that_ask_for_nothing_are_closed(responder):
    limits = Limits(read_s=0.3, max_connections=4)
    with running({"toy": responder}, limits) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(4)]
        silent[0].sendall(b"POST / HTTP/1.1\r\nHost: local")
        for connection in silent:
            with connection:
                assert is_closed(connection)
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as kept:
            kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            data = b""
            while b"ok" not in data:
                received = kept.recv(4096)
                assert received, data
                data += received
            kept.sendall(b"G")  # ends uvicorn's own count of idle seconds
            assert is_closed(kept)


def test_answers_may_take_longer_than_requests(responder, slowly):
    with running({"toy": responder}, Limits(read_s=0.3)) as server:
        begin_s = time.monotonic()
        assert server.ask(QUESTION, **{**ENDLESS, "max_tokens": 60})[0] == 200
        assert time.monotonic() - begin_s > 0.6


def test_half_a_body_is_not_passed_on():
    passed = []

    async def app(scope, receive, send):
        passed.append(await receive())

    messages = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b'{"prompt": "x"}', "more_body": True},
    ]

    async def receive():
        return messages.pop()

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(app, Limits(), None)(scope, receive, passed.append))
    assert passed == []


def test_slow_writers_are_let_go(responder):
    with running({"toy": responder}, Limits(read_s=0.3)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
            slow.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]
        assert server.ask(QUESTION, **GREEDY)[0] == 200


def test_readers_that_take_nothing_are_let_go(responder):
    """More questions than the socket's buffers have room for answers: the last ones wait to be taken."""
    with running({"toy": responder}, Limits(write_s=0.3)) as server:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.settimeout(60)
            deaf.connect(("127.0.0.1", server.port))
            with pytest.raises(ConnectionError):
                while True:
                    deaf.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        assert server.ask(QUESTION, **GREEDY)[0] == 200


def test_load_with_faults(server):
    """48 clients at once, half of them ill-behaved: the others get 429s, then right answers."""
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    statuses: list[int] = []

    def good(number):
        """Comes again until it is let in."""
        pair = PAIRS[number % 2]
        status = 429
        while status == 429:
            status, told = server.ask(pair.query, **GREEDY)
            statuses.append(status)
            time.sleep(0.02)
        assert told["choices"][0]["message"]["content"] == pair.response

    def cut(number):
        with server.open_stream(QUESTION, **ENDLESS) as stream:
            stream.recv(64)

    def slow(number):
        with server.open_stream(QUESTION, **GREEDY) as stream:
            data = b""
            while b"[DONE]" not in data and b"rate_limit_error" not in data:
                received = stream.recv(16)
                assert received, data  # complete or refused, never broken off
                data += received
                time.sleep(0.001)

    def malformed(number):
        assert server.request("POST", "/v1/chat/completions", b"{" * number)[0] == 400

    def oversize(number):
        body = b"x" * (LIMITS.max_body_bytes + number + 1)
        assert server.request("POST", "/", body)[0] == 413

    kinds = [good, good, oversize, cut, good, slow, good, malformed]
    with ThreadPoolExecutor(48) as clients:
        for done in [clients.submit(kinds[number % 8], number) for number in range(96)]:
            done.result(timeout=200)
    wait_until(lambda: is_idle(server))
    assert set(statuses) == {200, 429}
    assert statuses.count(200) == 48
    assert server.ask(QUESTION, **GREEDY)[1]["choices"][0]["message"]["content"] == ANSWER
    wait_until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 4)
    assert sum(thread.name == "decoding" for thread in threading.enumerate()) == 2


@pytest.mark.slow
def test_memory_stays_where_it_is_under_load(server):
    """Some hundred answers and cut connections after a warm-up: the process has not grown."""

    def ask_until_let_in():
        while (status := server.ask(QUESTION, **GREEDY)[0]) == 429:
            time.sleep(0.02)
        return status

    def leave():
        server.open_stream(QUESTION, **ENDLESS).close()
        return 200

    def round_of_clients():
        with ThreadPoolExecutor(8) as clients:
            begun = [clients.submit(act) for _ in range(60) for act in (ask_until_let_in, leave)]
            assert {done.result(timeout=120) for done in begun} == {200}
        wait_until(lambda: is_idle(server))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    for _ in range(2):
        round_of_clients()
    before_kb = round_of_clients()
    for _ in range(4):
        after_kb = round_of_clients()
    assert after_kb - before_kb < 20_000
