"""docs/knowledge.md held against the code."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from medsft.cli import app
from medsft.data.convert import WRITERS
from medsft.knowledge.pairs import KINDS

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "docs/knowledge.md").read_text(encoding="utf-8")


def first_cells(header: str) -> set[str]:
    (table,) = re.findall(rf"^\| {header} \|.*\n\| --- .*\n((?:\|.*\n)+)", TEXT, flags=re.MULTILINE)
    return {row.split("|")[1].strip().strip("`") for row in table.splitlines()}


def test_every_kind_is_described():
    assert first_cells("kind") == set(KINDS)


def test_every_reason_is_described():
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("medsft/data/check", "medsft/knowledge")
        for path in (REPOSITORY / folder).rglob("*.py")
    )
    assert first_cells("reject") == set(re.findall(r'Fault\(\s*"([^"]+)"', code))


def test_every_layout_is_named():
    assert set(
        re.findall(r"`--to` is one of (.*?);", TEXT)[0].replace("`", "").replace(" and", ",").split(", ")
    ) == set(WRITERS)


@pytest.mark.parametrize("line", re.findall(r"^medsft .*$", TEXT, flags=re.MULTILINE))
def test_commands_are_taken(line):
    command, rest = typer.main.get_command(app), shlex.split(line)[1:]
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_context(line, rest)
