"""docs/inference.md, held against the program: flags, limits, addresses, memory."""

import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import typer

from medsft.chatglm import ChatGLMConfig
from medsft.chatglm.weights.check import model_on_meta
from medsft.cli import app
from medsft.inference import chat
from medsft.inference.sampling import Sampling
from medsft.inference.server import app as server_app
from medsft.inference.server import forms
from medsft.inference.server.limits import Limits
from medsft.inference.server.serve import KEY_VARIABLE

TEXT = (Path(__file__).parents[2] / "docs" / "inference.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands


def table(first_cell: str) -> list[list[str]]:
    """The rows below the header that begins so."""
    ((_, lines),) = re.findall(
        rf"^(\| {re.escape(first_cell)} .*\n\|[- |]+\n)((?:\|.*\n)+)", TEXT, re.MULTILINE
    )
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines.splitlines()]


def options(command: str) -> dict[str, typer.core.TyperOption]:
    return {name: option for option in COMMANDS[command].params for name in option.opts}


def test_flags_of_chat_and_their_defaults():
    known = options("chat")
    for flag, default, _ in table("flag of `medsft chat`"):
        option = known[flag.strip("`")]
        shown = {"—": None, "true": True, "false": False, "auto": "auto"}.get(default, default)
        assert str(option.default) == str(shown), flag
    listed = {row[0].strip("`").removeprefix("--") for row in table("flag of `medsft chat`")}
    assert {field.name for field in fields(Sampling)} <= listed
    for field in fields(Sampling):
        if field.name not in ("max_new_tokens", "seed"):
            assert known[f"--{field.name}"].default == field.default  # one set of defaults
    assert f"({Sampling.max_new_tokens}, or half" in TEXT


def test_what_can_be_typed():
    typed = {word for row in table("typed") for word in re.findall(r"`([^`]+)`", row[0])}
    assert typed == {*chat._LEAVE, chat._CLEAR, chat._AGAIN, chat._HISTORY, f"{chat._SAVE} FILE"}


def test_limits_of_the_server():
    limits, known = Limits(), options("serve")
    shown = {row[0]: row[1].replace(",", "") for row in table("limit")}
    for flag, value in (
        ("--max_new_tokens", limits.max_new_tokens),
        ("--max_concurrency", limits.max_rows),
        ("--max_waiting", limits.max_waiting),
    ):
        (cell,) = [default for name, default in shown.items() if f"`{flag}`" in name]
        assert int(cell) == value == known[flag].default
    assert int(shown["messages in a conversation"]) == limits.max_messages
    assert int(shown["bytes of a request"]) == limits.max_body_bytes
    assert float(shown["seconds for a request's head to arrive, then for its body"]) == limits.read_s
    assert float(shown["seconds for a client to take what it is sent"]) == limits.write_s
    assert int(shown["connections"]) == limits.max_connections
    assert len(shown) == len(fields(Limits))
    assert f"`{KEY_VARIABLE}`" in TEXT
    assert f"127.0.0.1:{known['--port'].default}/" in TEXT and known["--host"].default == "127.0.0.1"


def test_addresses_of_the_server():
    routes = re.findall(r'@app\.(get|post)\("([^"]+)"\)', inspect.getsource(server_app))
    shown = [tuple(row[0].strip("`").split()) for row in table("address")]
    assert sorted(shown) == sorted((method.upper(), path) for method, path in routes)
    (old,) = [row[1] for row in table("address") if row[0] == "`POST /`"]
    assert set(forms.OldRequest.model_fields) <= set(re.findall(r"`(\w+)`", old))
    understood = re.search(r"Understood are (.*?) is refused with a 400", TEXT, re.DOTALL)[1]
    for name in set(forms.ChatRequest.model_fields) - {"model"}:
        assert f"`{name}`" in understood


@pytest.mark.parametrize("bits", [0, 8, 4])
def test_memory_of_the_weights(bits):
    model = model_on_meta(ChatGLMConfig(quantization_bit=bits))
    fixed = sum(p.nbytes for name, p in model.named_parameters() if p.dtype == torch.int8 or "scale" in name)
    others = sum(
        p.numel() for name, p in model.named_parameters() if p.dtype != torch.int8 and "scale" not in name
    )
    (row,) = [row for row in table("`--quantize`") if row[0].strip("`") == (str(bits) if bits else "—")]
    for cell, num_bytes in zip(row[1:], (2, 4), strict=True):
        assert cell == f"{(fixed + others * num_bytes) / 1e9:.1f}"
    config = ChatGLMConfig()
    cache_gb = 2 * 2 * config.num_layers * config.hidden_size * config.max_sequence_length / 1e9
    assert f"({cache_gb:.1f} GB for 2,048 tokens in fp16)" in TEXT


def test_commands_are_taken():
    for block in re.findall(r"^```bash\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            _, name, *rest = shlex.split(line.rpartition("| ")[2])
            COMMANDS[name].make_context(name, rest)
