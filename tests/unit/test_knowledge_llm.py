"""Pairs from a language model, against a small server that speaks the protocol and has faults."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from medsft.cli import app
from medsft.data.files import expand_files
from medsft.data.records import read_files
from medsft.errors import UserError
from medsft.knowledge.graph import SAMPLE_GRAPH, Graph, read_graph
from medsft.knowledge.llm import client
from medsft.knowledge.llm.cache import ReplyCache, request_key
from medsft.knowledge.llm.client import Endpoint, _Pace, api_key, without_secrets
from medsft.knowledge.llm.generate import RequestSettings, ask_missing, collect, estimate, make_tasks
from medsft.knowledge.llm.prompts import load_prompts
from medsft.knowledge.llm.replies import parse_reply
from medsft.knowledge.templates import load_templates

SAMPLE = read_graph([SAMPLE_GRAPH])
FEW = Graph(SAMPLE.entities[:4], 0, ())
PROMPTS = load_prompts().chosen(["facts"])
ASKED = RequestSettings("toy", num_pairs=1)
KEY = "sk-very-secret"

Fault = Callable[[int], str | None]
"""Attempts at the same request so far -> what goes wrong with this one."""


class Server:
    """An endpoint on a free port; counts attempts and completions for each request."""

    def __init__(
        self,
        fault: Fault = lambda attempt: None,
        reply: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({"retry-after-ms": "5"}),
    ) -> None:
        self.attempts: Counter[str] = Counter()
        self.completed: Counter[str] = Counter()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.headers["Authorization"] != f"Bearer {KEY}":
                    return self._send(
                        401, {"error": {"message": f"wrong key {self.headers['Authorization']}"}}
                    )
                prompt = body["messages"][1]["content"]
                with server._lock:
                    server.attempts[prompt] += 1
                    what = fault(server.attempts[prompt])
                if what == "429":
                    return self._send(429, {"error": {"message": "slow down"}}, headers)
                if what == "500":
                    return self._send(500, {"error": {"message": "oops"}}, headers)
                if what in ("400", "422"):
                    return self._send(int(what), {"error": {"message": "filtered"}})
                if what == "404":
                    return self._send(404, {"error": {"message": "no such model"}})
                name = prompt.split("关于“")[1].split("”")[0]
                text = reply or json.dumps([{"问题": f"{name}是什么？", "回答": f"{name}是一种常见病。"}])
                with server._lock:
                    server.completed[prompt] += what is None
                whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "toy"}
                message = {"role": "assistant", "content": text}
                whole["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
                if what == "cut":
                    return self._send(200, whole, cut=True)
                if what == "garbage":
                    return self._send(200, b"<html>busy</html>", {"Content-Type": "application/json"})
                if what == "empty":
                    whole["choices"] = []
                return self._send(200, whole)

            def _send(self, status: int, body, headers=None, cut: bool = False) -> None:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection = cut

            def log_message(self, *_) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request, client_address) -> None:
                """A client that hangs up is no news here."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve():
    servers = []

    def start(*arguments, **options) -> Server:
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def endpoint(server: Server, **options) -> Endpoint:
    return Endpoint(
        server.url, requests_per_minute=60_000, **{"max_retries": 3, "timeout_s": 20.0, **options}
    )


@pytest.mark.parametrize("fault", ["429", "500", "cut", "garbage", "empty"])
def test_a_fault_that_passes_is_waited_out(serve, tmp_path, fault):
    server = serve(lambda attempt: fault if attempt == 1 else None)
    cache = ReplyCache(tmp_path / "c.jsonl")
    tasks = make_tasks(FEW, PROMPTS, ASKED)
    ask_missing(tasks[:2], cache, endpoint(server), KEY)
    assert all(cache.get(task.key) for task in tasks[:2])
    assert set(server.attempts.values()) == {2}


def test_a_fault_that_stays_loses_only_its_own_request(serve, tmp_path):
    tasks = make_tasks(FEW, PROMPTS, ASKED)
    is_broken = {"first": True}
    # With one request at a time the first two attempts of all are those of the first request.
    server = serve(
        lambda attempt: "500" if is_broken["first"] and sum(server.attempts.values()) < 3 else None
    )
    cache = ReplyCache(tmp_path / "c.jsonl")
    with pytest.raises(UserError, match=r"1 of 4 requests .* got no reply \(1 × InternalServerError\)"):
        ask_missing(tasks, cache, endpoint(server, max_retries=1, concurrency=1), KEY)
    assert [bool(cache.get(task.key)) for task in tasks] == [False, True, True, True]
    is_broken["first"] = False
    ask_missing(tasks, cache, endpoint(server), KEY)
    assert all(cache.get(task.key) for task in tasks)
    assert set(server.completed.values()) == {1}


def test_a_killed_run_goes_on_and_pays_nothing_twice(serve, tmp_path):
    server = serve()
    tasks = make_tasks(FEW, PROMPTS, ASKED)
    cache = ReplyCache(tmp_path / "c.jsonl")

    def die(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask_missing(tasks, cache, endpoint(server, concurrency=1), KEY, die)
    with (tmp_path / "c.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    again = ReplyCache(tmp_path / "c.jsonl")
    assert estimate(tasks, again, ASKED, endpoint(server), None).num_cached == 2
    ask_missing(tasks, again, endpoint(server, concurrency=1), KEY)
    assert set(server.completed.values()) == {1} and len(server.completed) == 4
    assert all(ReplyCache(tmp_path / "c.jsonl").get(task.key) for task in tasks)


def test_a_run_that_is_killed_has_paid_for_every_stored_answer_once(serve, tmp_path, monkeypatch):
    """A real process and a real SIGKILL while a third request is under way; the output is any run's."""
    go_on = threading.Event()
    server = serve(lambda attempt: None if server.attempts.total() < 3 or go_on.wait(60) else "500")
    out = tmp_path / "written.jsonl"
    arguments = ["data", "generate", "--graph", str(SAMPLE_GRAPH), "--output", str(out), "--model", "toy"]
    arguments += ["--base_url", server.url, "--max_entities", "4", "--forms", "facts", "--yes"]
    arguments += ["--requests_per_minute", "60000", "--concurrency", "1"]
    environment = {**os.environ, "MEDSFT_LLM_KEY": KEY}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen([sys.executable, "-m", "medsft.cli", *arguments], env=environment, **quiet)
    try:
        deadline_s = time.monotonic() + 120
        while server.attempts.total() < 3 and run.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
    finally:
        run.kill()
        run.wait()
    go_on.set()
    stored = set(server.attempts) - {list(server.attempts)[2]}
    assert run.returncode == -9 and len(stored) == 2 and not out.exists()
    monkeypatch.setenv("MEDSFT_LLM_KEY", KEY)
    again = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "2 requests to send, 2 answered already" in again.stdout
    assert len(read_files([out]).examples) == 4 == len(server.attempts)
    assert {server.attempts[prompt] for prompt in stored} == {1}
    assert [path.name for path in expand_files([tmp_path])] == ["written.jsonl"]
    undisturbed = tmp_path / "undisturbed.jsonl"
    arguments[arguments.index(str(out))] = str(undisturbed)
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert out.read_bytes() == undisturbed.read_bytes()


@pytest.mark.parametrize("headers", [{"retry-after-ms": "5"}, {"Retry-After": "0"}, {}])
def test_repetitions_are_paced_too(serve, tmp_path, monkeypatch, headers):
    turns = []
    turn = _Pace.turn

    async def counted(pace: _Pace) -> None:
        turns.append(pace)
        await turn(pace)

    monkeypatch.setattr(_Pace, "turn", counted)
    monkeypatch.setattr(client, "_MIN_WAIT_S", 0.01)
    server = serve(lambda attempt: "500" if attempt < 3 else None, headers=headers)
    tasks = make_tasks(FEW, PROMPTS, ASKED)
    ask_missing(tasks, ReplyCache(tmp_path / "c"), endpoint(server), KEY)
    assert len(turns) == server.attempts.total() == 3 * len(tasks)


def test_what_the_server_asks_to_wait_all_requests_wait(monkeypatch):
    waits: list[float] = []

    async def no_sleep(seconds: float) -> None:
        waits.append(seconds)

    async def starts() -> None:
        pace = _Pace(per_minute=6000.0)
        pace.hold(20.0)
        await pace.turn()

    monkeypatch.setattr(asyncio, "sleep", no_sleep)
    asyncio.run(starts())
    assert waits[0] == pytest.approx(20, abs=5)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "Fri, 01 Jan 1999 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_what_the_server_asks_to_wait(headers, wait_s):
    assert client._asked_wait_s(SimpleNamespace(headers=headers)) == wait_s


def test_a_server_that_asks_for_a_day_is_not_waited_for(serve, tmp_path):
    server = serve(lambda attempt: "429", headers={"Retry-After": "86400"})
    tasks = make_tasks(FEW, PROMPTS, ASKED)[:1]
    with pytest.raises(UserError, match="RateLimitError that asks to wait 86,400 s"):
        ask_missing(tasks, ReplyCache(tmp_path / "c"), endpoint(server), KEY)
    assert server.attempts.total() == 1


def test_a_full_disk_stops_and_says_so(serve, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    cache = ReplyCache(tmp_path / "c")
    monkeypatch.setattr("medsft.journal.os.fsync", full)
    with pytest.raises(UserError, match=r"No space left on device\. Make room and run again"):
        ask_missing(make_tasks(FEW, PROMPTS, ASKED), cache, endpoint(serve()), KEY)


@pytest.mark.parametrize(("key", "fault", "said"), [("sk-wrong-key", None, "401"), (KEY, "404", "404")])
def test_what_no_repetition_mends_stops_at_once(serve, tmp_path, key, fault, said):
    server = serve(lambda attempt: fault)
    with pytest.raises(UserError, match=f"refuses the request .{said}") as caught:
        ask_missing(
            make_tasks(SAMPLE, PROMPTS, ASKED), ReplyCache(tmp_path / "c.jsonl"), endpoint(server), key
        )
    assert key not in str(caught.value)
    assert server.attempts.total() <= 4


@pytest.mark.parametrize("status", ["400", "422"])
def test_a_refused_prompt_is_rejected_and_not_asked_again(serve, tmp_path, status):
    # With one request at a time the first attempt of all is the first request, before any has worked.
    server = serve(lambda attempt: status if server.attempts.total() == 1 else None)
    tasks = make_tasks(FEW, PROMPTS, ASKED)
    cache = ReplyCache(tmp_path / "c.jsonl")
    ask_missing(tasks, cache, endpoint(server, concurrency=1), KEY)
    assert [bool(cache.get(task.key)) for task in tasks] == [False, True, True, True]
    cache = ReplyCache(tmp_path / "c.jsonl")
    ask_missing(tasks, cache, endpoint(server), KEY)
    assert server.attempts.total() == 4
    _, summary = collect(tasks, cache, SAMPLE, load_templates())
    (reason,) = [reason for reason in summary.rejected if reason.startswith(f"request refused ({status} ")]
    assert summary.rejected[reason] == 1 and summary.num_replies == 3


@pytest.mark.parametrize("num_tasks", [1, 4])
def test_an_endpoint_that_refuses_everything_stops_the_set(serve, tmp_path, num_tasks):
    server = serve(lambda attempt: "400")
    tasks = make_tasks(FEW, PROMPTS, ASKED)[:num_tasks]
    cache = ReplyCache(tmp_path / "c.jsonl")
    with pytest.raises(UserError, match=r"refuses the request \(400"):
        ask_missing(tasks, cache, endpoint(server, concurrency=1), KEY)
    assert server.attempts.total() == min(num_tasks, 3)
    assert not any(cache.is_settled(task.key) for task in tasks)


def test_no_network(tmp_path):
    nowhere = Endpoint("http://127.0.0.1:9/v1", max_retries=0, requests_per_minute=60_000)
    with pytest.raises(UserError, match=r"4 of 4 requests .* \(4 × APIConnectionError\)"):
        ask_missing(make_tasks(FEW, PROMPTS, ASKED), ReplyCache(tmp_path / "c.jsonl"), nowhere, KEY)


def test_the_key_comes_from_the_environment():
    assert api_key({"OPENAI_API_KEY": "a"}) == "a"
    assert api_key({"OPENAI_API_KEY": "a", "MEDSFT_LLM_KEY": "b"}) == "b"
    assert without_secrets("https://u:pw@h:8/v1?key=x") == "https://h:8/v1"
    with pytest.raises(UserError, match="set MEDSFT_LLM_KEY"):
        api_key({"MEDSFT_LLM_KEY": ""})


def test_requests_are_spread_evenly(monkeypatch):
    waits: list[float] = []

    async def no_sleep(seconds: float) -> None:
        waits.append(seconds)

    async def starts() -> None:
        pace = _Pace(per_minute=6.0)
        for _ in range(4):
            await pace.turn()

    monkeypatch.setattr(asyncio, "sleep", no_sleep)
    asyncio.run(starts())
    assert [round(wait_s, -1) for wait_s in waits] == [0, 10, 20, 30]


PAIR = [("甲？", "乙。")]


@pytest.mark.parametrize(
    ("reply", "pairs", "is_as_asked"),
    [
        ('[{"问题": "甲？", "回答": "乙。"}]', PAIR, True),
        ('[{"question": "甲？", "answer": " 乙。"}]', PAIR, True),
        ('```json\n[{"问题": "甲？", "回答": "乙。"}]\n```', PAIR, False),
        ('好的：[{"问题": "甲？", "回答": "乙。",}] 希望有用', PAIR, False),
        ('[{"问题": "甲？", "回答": "乙。"}, {"问题": "丙', PAIR, False),
        ('{"问题": "甲？", "回答": "乙。"}', PAIR, False),
        ("问题：甲？\n回答：乙。", PAIR, False),
        ("问题1：甲？\n回答1：乙。\n\n问题2：丙？\n回答2：丁。", [*PAIR, ("丙？", "丁。")], False),
        ('[{"问题": "甲？", "回答": ""}, {"问题": 3, "回答": "乙"}, 5]', [], True),
        ("对不起，我不能回答。", [], False),
        ("", [], False),
        ("[" * 5000, [], False),
    ],
)
def test_replies(reply, pairs, is_as_asked):
    assert parse_reply(reply) == (pairs, is_as_asked)


def test_what_a_model_invents_is_rejected_and_counted(tmp_path):
    cache = ReplyCache(tmp_path / "c.jsonl")
    tasks = make_tasks(Graph(SAMPLE.entities[:1], 0, ()), PROMPTS, ASKED)
    texts = [("偏头痛吃什么药？", "可在医生指导下使用布洛芬。"), ("偏头痛怎么办？", "可以吃甲氨蝶呤。"),
             ("偏头痛严重吗？", "作为人工智能，我不清楚。"), ("偏头痛吃什么药？", "舒马普坦。")]  # fmt: skip
    cache.put(tasks[0].key, json.dumps([{"问题": question, "回答": answer} for question, answer in texts]))
    pairs, summary = collect(tasks, cache, SAMPLE, load_templates())
    assert [(pair.question, pair.answer) for pair in pairs] == texts[:1]
    assert summary.rejected == {
        "leaves the graph's facts": 1, "boilerplate": 1, "question asked before": 1,
    }  # fmt: skip


def test_keys_depend_on_everything_that_is_sent():
    entity = FEW.entities[:1]
    some = [
        make_tasks(Graph(entity, 0, ()), PROMPTS, RequestSettings(*asked))[0].key
        for asked in (("toy", 1), ("other", 1), ("toy", 2), ("toy", 1, 0.1))
    ]
    assert len(set(some)) == 4
    assert request_key({"a": 1, "b": 2}) == request_key({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("forms: {a: b}", "must hold system and forms"),
        ("system: x\nforms: {}", "names with texts"),
        ("system: x\nforms: {a: '{entity}'}", "form a must hold"),
        ("system: x\nforms: {a: '{entity'}", "stray brace"),
        ("system: x\nforms: {a: ['{entity} {knowledge} {count}']}", "form a must be a text; it is a list"),
        ("system: [", "cannot be read as YAML"),
    ],
)
def test_prompt_files(tmp_path, text, said):
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_prompts(tmp_path / "p.yaml")
    with pytest.raises(UserError, match="rhyme was asked for"):
        load_prompts().chosen(["rhyme"])


def test_command(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSFT_LLM_KEY", KEY)
    server = serve(lambda attempt: "429" if attempt == 1 else None)
    out = tmp_path / "生成 的.jsonl"
    arguments = ["data", "generate", "--graph", str(SAMPLE_GRAPH), "--output", str(out), "--model", "toy"]
    arguments += ["--base-url", server.url, "--max_entities", "3", "--forms", "facts"]
    arguments += ["--requests_per_minute", "60000"]
    dry = CliRunner().invoke(app, [*arguments, "--dry_run", "--price_in", "1", "--price_out", "2"])
    assert dry.exit_code == 0 and "3 requests to send" in dry.stdout and "cost about" in dry.stdout
    assert not server.attempts and not out.exists()
    refused = CliRunner().invoke(app, arguments, input="n\n")
    assert refused.exit_code == 1 and not server.attempts
    done = CliRunner().invoke(app, [*arguments, "--yes"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "3 pairs from 3 replies" in done.stdout and KEY not in done.stdout
    assert len(read_files([out]).examples) == 3
    record = json.loads(out.read_text("utf-8").splitlines()[0])
    assert record["provenance"]["model"] == "toy" and record["provenance"]["template"] == "prompt facts"
    everything = "".join(path.read_text("utf-8") for path in Path(tmp_path).iterdir())
    assert KEY not in everything and "no medical advice" in everything
    card = out.with_suffix(".card.md").read_text("utf-8")
    assert "| prompt forms | facts |" in card and "| largest number of entities | 3 |" in card
    assert f"| endpoint | {server.url} |" in card
    before = out.read_bytes()
    CliRunner().invoke(app, [*arguments, "--yes"], catch_exceptions=False)
    assert out.read_bytes() == before
    assert set(server.completed.values()) == {1}
