"""The server on a loopback port: official client, old form, limits, clients that leave, faults under load."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from chat_toy import PAIRS, ROUND
from runs import free_port
from served import GREEDY, running, wait_until

from medsft.errors import UserError
from medsft.inference.decoding import Decoder
from medsft.inference.responder import open_responder
from medsft.inference.sampling import Sampling
from medsft.inference.server.engine import FairQueue, Stopped, Ticket
from medsft.inference.server.limits import Guard, Limits
from medsft.inference.server.serve import check_port, names_of, read_key

MEDSFT = str(Path(sys.executable).with_name("medsft"))
QUESTION, ANSWER = PAIRS[1].query, PAIRS[1].response
LIMITS = Limits(max_body_bytes=20_000, max_new_tokens=200, max_messages=20, max_rows=2, max_waiting=3)
# Wanders on without an end token for as long as it may, mostly.
ENDLESS = {"max_tokens": 200, "temperature": 9.0, "top_p": 1.0, "top_k": 0, "seed": 1}


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


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def is_idle(server):
    return all(each.engine.num_running == each.engine.num_waiting == 0 for each in server.models)


def metric(server, name):
    _, _, body = server.request("GET", "/metrics")
    lines = [line for line in body.decode().splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


# --- forms


def test_the_openai_client_gets_whole_answers(client):
    assert [model.id for model in client.models.list()] == ["tuned", "base"]
    history = [{"role": "user", "content": ROUND[0][0]}, {"role": "assistant", "content": ROUND[0][1]}]
    answer = client.chat.completions.create(
        model="tuned", messages=[*history, {"role": "user", "content": "然后呢？"}], temperature=0
    )
    assert answer.choices[0].message.content == PAIRS[2].response
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    parts = [{"type": "text", "text": QUESTION}]
    cut = client.chat.completions.create(
        model="base", messages=[{"role": "user", "content": parts}], temperature=0, max_tokens=3
    )
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 3
    assert ANSWER.startswith(cut.choices[0].message.content[:-1])


def test_the_openai_client_gets_streams(client):
    stream = client.chat.completions.create(
        model="tuned",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage.completion_tokens >= len(chunks) - 2


@pytest.mark.parametrize("stop", ["早睡", ["没有", "睡😀", "早睡😀"]], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_an_answer(client, stop, stream):
    question, answer = ROUND[0]
    got = client.chat.completions.create(
        model="tuned",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        stop=stop,
        stream=stream,
        max_completion_tokens=40,
    )
    choices = [chunk.choices[0] for chunk in got] if stream else got.choices
    texts = [(choice.delta if stream else choice.message).content or "" for choice in choices]
    assert "".join(texts) == answer.partition("早睡")[0]
    assert choices[-1].finish_reason == "stop"


def test_what_clients_send_by_habit_does_no_harm(client):
    """Values that mean nothing: as some clients and their frameworks always send them."""
    got = client.chat.completions.create(
        model="tuned",
        messages=[{"role": "user", "content": QUESTION, "name": "patient"}],
        temperature=0,
        n=1,
        stop=[],
        frequency_penalty=0,
        presence_penalty=0.0,
        logprobs=False,
        logit_bias={},
        tools=[],
        response_format={"type": "text"},
        user="someone",
        metadata={"a": "b"},
    )
    assert got.choices[0].message.content == ANSWER


def test_a_seed_repeats_an_answer(server):
    texts = [
        server.ask(QUESTION, max_tokens=20, temperature=5, top_p=1, seed=seed)[1]["choices"][0]["message"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_openai_client_understands_refusals(client):
    messages = [{"role": "user", "content": QUESTION}]
    with pytest.raises(openai.NotFoundError, match="there are tuned, base"):
        client.chat.completions.create(model="other", messages=messages)
    with pytest.raises(openai.BadRequestError, match="max_tokens is 201; this server writes at most 200"):
        client.chat.completions.create(model="tuned", messages=messages, max_tokens=201)
    with pytest.raises(openai.BadRequestError, match="n: "):
        client.chat.completions.create(model="tuned", messages=messages, n=2)
    with pytest.raises(openai.BadRequestError, match="presence_penalty: not supported"):
        client.chat.completions.create(model="tuned", messages=messages, presence_penalty=1.0)


def test_the_form_of_the_original_api(server):
    asked = {"prompt": "然后呢？", "history": ROUND, "temperature": 0, "max_length": 200}
    status, _, body = server.request("POST", "/", asked)
    told = json.loads(body)
    assert (status, told["status"]) == (200, 200)
    assert told["response"] == PAIRS[2].response
    assert told["history"] == [list(ROUND[0]), ["然后呢？", PAIRS[2].response]]
    assert time.strptime(told["time"], "%Y-%m-%d %H:%M:%S")
    first = server.request("POST", "/", {"prompt": QUESTION, "history": None, "temperature": 0})
    assert json.loads(first[2])["history"] == [[QUESTION, json.loads(first[2])["response"]]]
    status, _, body = server.request("POST", "/", {"prompt": QUESTION, "history": [["a"]]})
    assert (status, "history" in json.loads(body)["error"]["message"]) == (400, True)
    status, _, body = server.request("POST", "/", {"prompt": " "})
    assert (status, json.loads(body)["error"]["message"]) == (400, "empty prompt.")


def test_page_health_and_figures(server):
    status, headers, body = server.request("GET", "/")
    assert status == 200 and "不构成医疗建议" in body.decode() and "no medical advice" in body.decode()
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "http://" not in body.decode() and "https://" not in body.decode()  # nothing from elsewhere
    assert json.loads(server.request("GET", "/healthz")[2]) == {"status": "ok"}
    for path in ("/", "/healthz"):  # as watchers of a server ask
        status, _, body = server.request("HEAD", path)
        assert (status, body) == (200, b"")
    before = metric(server, 'medsft_requests_total{model="tuned",outcome="stop"}')
    tokens = metric(server, 'medsft_generated_tokens_total{model="tuned"}')
    _, told = server.ask(QUESTION, **GREEDY)
    assert metric(server, 'medsft_requests_total{model="tuned",outcome="stop"}') == before + 1
    expected = tokens + told["usage"]["completion_tokens"]
    assert metric(server, 'medsft_generated_tokens_total{model="tuned"}') == expected
    assert metric(server, 'medsft_running{model="tuned"}') == 0


# --- limits


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty prompt"),
        ({"messages": [{"role": "robot", "content": "x"}, {"role": "user", "content": "x"}]}, "robot"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "last one must be the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of type text"),
        ({"messages": [{"role": "user", "content": "x"}] * 21}, "21 messages, of at most 20"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "UTF-8"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 2}, "n: "),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["x"] * 17}, "stop: at most 16 strings"),
        ({"stop": "x" * 257}, "of at most 256 characters"),
        ({"stop": 3}, "stop"),
        ({"frequency_penalty": 0.5}, "frequency_penalty: not supported"),
        ({"tools": [{}]}, "tools: not supported"),
        ({"response_format": {"type": "json_object"}}, "only text"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_what_makes_no_sense_is_refused(server, changes, part):
    settings = dict(changes)
    status, told = server.ask(settings.pop("messages", QUESTION), **settings)
    assert status == 400
    assert part in told["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"messages": 3}', b"\xff\xfe", b"[" * 10_000])
def test_malformed_bodies(server, body):
    for path in ("/v1/chat/completions", "/"):
        status, _, answer = server.request("POST", path, body)
        assert status == 400
        error = json.loads(answer)["error"]
        assert error["type"] == "invalid_request_error"
        assert not error["message"].startswith(":")


def test_pages_from_elsewhere_cannot_ask(server):
    """A browser sends what looks like a form without asking the server first; it does not get through."""
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "prompt": QUESTION}).encode()
    for path in ("/v1/chat/completions", "/"):
        status, headers, told = server.request("POST", path, body, {"Content-Type": "text/plain"})
        assert status == 400
        assert b"Content-Type: application/json" in told
        assert "Access-Control-Allow-Origin" not in headers
    assert (
        server.request("OPTIONS", "/v1/chat/completions", headers={"Origin": "http://evil.example"})[0] == 405
    )


def test_oversize_bodies(server):
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
    for sent in (
        f"{head}Content-Length: 20001\r\n\r\n".encode(),
        f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + 3 * chunk,
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(sent)
            assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]


def test_unknown_paths_and_methods(server):
    assert server.request("GET", "/nothing")[0] == 404
    assert server.request("DELETE", "/v1/models")[0] == 405
    assert server.request("GET", "/docs")[0] == 404


def test_other_names_for_this_machine_are_refused(server):
    for host, expected in (
        ("evil.example", 403),
        ("LocalHost:8000", 200),
        ("[::1]:1", 200),
        ("127.0.0.2", 200),
        ("127.evil", 403),
        ("", 403),
    ):
        assert server.request("GET", "/v1/models", headers={"Host": host})[0] == expected


def test_a_key_is_asked_for(responder):
    with running({"toy": responder}, LIMITS, key="s3cret") as server:
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer s3cré".encode("latin-1")},
        ):
            status, _, body = server.request("GET", "/v1/models", headers=given)
            assert status == 401 and b"s3cret" not in body
            assert server.request("POST", "/", {"prompt": "x"}, headers=given)[0] == 401
            assert server.request("GET", "/metrics", headers=given)[0] == 401
            assert server.request("GET", "/healthz", headers=given)[0] == 200
            assert server.request("GET", "/", headers=given)[0] == 200
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="s3cret") as client:
            assert [model.id for model in client.models.list()] == ["toy"]


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


# --- command line


def test_other_addresses_need_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(UserError, match=r"other machines.*MEDSFT_SERVE_KEY.*127\.0\.0\.1"):
            read_key(host, {"MEDSFT_SERVE_KEY": ""})
        assert read_key(host, {"MEDSFT_SERVE_KEY": "abc"}) == "abc"
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert read_key(host, {}) is None
    with pytest.raises(UserError, match="no blank"):
        read_key("127.0.0.1", {"MEDSFT_SERVE_KEY": "a b"})


def test_names_and_ports():
    assert names_of([Path("runs/a"), Path("models/b"), Path("models/a")]) == ["a", "b", "a-2"]
    same = [Path("a/m"), Path("b/m"), Path("c/m-2"), Path("d/m-2"), Path("e/m")]
    assert names_of(same) == ["m", "m-3", "m-2", "m-2-2", "m-4"]
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match="Give another --port"),
    ):
        check_port("127.0.0.1", taken.getsockname()[1])


def test_the_command_serves_and_ends(chat_model_dir):
    port = free_port()
    command = [MEDSFT, "serve", "--model", str(chat_model_dir), "--port", str(port), "--quantize", "8"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if f"http://127.0.0.1:{port}/" in line:
                break
        socket.create_connection(("127.0.0.1", port)).close()  # it says so when it listens, not before
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0)
        messages = [{"role": "user", "content": QUESTION}]
        answer = client.chat.completions.create(model=chat_model_dir.name, messages=messages, temperature=0)
        assert answer.choices[0].message.content == ANSWER
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
