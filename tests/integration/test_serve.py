"""The server on a loopback port: official client, old form, refusals, keys, the command."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
from chat_toy import PAIRS, ROUND
from runs import free_port
from served import GREEDY, LIMITS, metric, running

from medsft.errors import UserError
from medsft.inference.responder import open_responder
from medsft.inference.server.serve import check_port, names_of, read_key

MEDSFT = str(Path(sys.executable).with_name("medsft"))
QUESTION, ANSWER = PAIRS[1].query, PAIRS[1].response


@pytest.fixture(scope="module")
def responder(chat_model_dir):
    return open_responder(chat_model_dir, device="cpu")


@pytest.fixture(scope="module")
def server(responder):
    with running({"tuned": responder, "base": responder}, LIMITS) as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


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
