"""What the documents say, held against the code: links, numbers, names, defaults, messages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from medsft.data.files import NOT_UTF8

REPOSITORY = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh.md")
DOCUMENTS = sorted(
    path.relative_to(REPOSITORY)
    for pattern in ("*.md", "docs/*.md", "ds_configs/*.md", "benchmarks/**/*.md")
    for path in REPOSITORY.glob(pattern)
)
REQUIRED = ["--model_name_or_path", "m", "--train_file", "t", "--output_dir", "o"]
# Flags of other programs that the documents name.
FOREIGN_FLAGS = {"--hostfile", "--master_addr", "--master_port", "--mem", "--help"}


def read(name: str | Path) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def blocks(name: str | Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(name), flags=re.DOTALL | re.MULTILINE)


def prose(name: str | Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(name), flags=re.DOTALL | re.MULTILINE)


def tables(text: str) -> list[list[list[str]]]:
    """All tables: rows of cells, the header first, the line of dashes left out."""
    found = []
    for lines in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines.splitlines()]
        found.append(
            [[cell.strip("| ") for cell in row] for row in rows if not set("".join(row)) <= set("-| ")]
        )
    return found


def table_under(name: str | Path, first_cell: str) -> list[list[str]]:
    """The rows below the header of the one table whose header begins so."""
    (found,) = [table[1:] for table in tables(read(name)) if table[0][0] == first_cell]
    return found


def unquoted(cell: str) -> str:
    return cell.strip("`")


@cache
def flag_names() -> frozenset[str]:
    """Every long option of the training, the launcher and the medsft command."""
    import typer

    from medsft.cli import app
    from medsft.config import parse

    names = {f"--{name}" for name in parse(REQUIRED).flags()} | {"--config"}
    launcher = [sys.executable, "-m", "launcher", "run", "--help"]
    shown = subprocess.run(launcher, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    names |= set(re.findall(r"--[a-z][a-z_-]+", shown))
    pending = [typer.main.get_command(app)]
    while pending:
        command = pending.pop()
        pending += getattr(command, "commands", {}).values()
        for parameter in command.params:
            names.update(parameter.opts, parameter.secondary_opts)
    return frozenset(names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_relative_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"[a-z]+://|mailto:|#", target):
            continue
        path = (REPOSITORY / document).parent / unquote(target.split("#")[0])
        assert path.exists(), f"{document}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_named_flags_exist(document):
    known = flag_names() | FOREIGN_FLAGS
    for code in re.findall(r"`([^`\n]+)`", prose(document)):
        for flag in re.findall(r"(?<!\S)--[a-z][a-z0-9_-]*", code):
            assert flag in known, f"{document}: {flag}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_named_files_of_the_repository_exist(document):
    places = (REPOSITORY, (REPOSITORY / document).parent)
    pattern = (
        r"`((?:medsft|launcher|ds_configs|slurm|examples|benchmarks|docs|tests)/[\w./-]+|zero3\w*\.json)`"
    )
    for name in re.findall(pattern, prose(document)):
        assert any((place / name).exists() for place in (*places, REPOSITORY / "ds_configs")), (
            f"{document}: {name}"
        )


@pytest.mark.parametrize("readme", READMES)
def test_the_flag_table_has_the_defaults(readme):
    from medsft.config import parse

    defaults = parse(REQUIRED).flags()
    rows = [table[1:] for table in tables(read(readme)) if table[1][0].startswith("`--")]
    (rows,) = rows
    assert len(rows) > 20
    for flag, shown, meaning in rows:
        default = defaults[unquoted(flag).removeprefix("--")]
        if shown == "—":
            assert default is None or default == [], flag
        elif isinstance(default, bool):
            assert shown == str(default).lower(), flag
        elif isinstance(default, int | float):
            assert float(shown) == default, flag
        else:
            assert shown == default, flag
        assert meaning


def test_both_flag_tables_list_the_same():
    listed = [
        re.findall(r"^\| `(--\w+)` \| ([^|]+) \|", read(readme), flags=re.MULTILINE) for readme in READMES
    ]
    assert listed[0] == listed[1]


@pytest.mark.parametrize("readme", READMES)
def test_every_deepspeed_configuration_is_in_the_table(readme):
    shown = re.findall(r"\| `(ds_configs/\w+\.json)` \|", read(readme))
    assert sorted(shown) == sorted(
        str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("ds_configs/*.json")
    )


@pytest.mark.parametrize("readme", READMES)
def test_the_layout_is_the_one_on_disk(readme):
    (tree,) = [block for block in blocks(readme, "text") if block.startswith("launcher/")]
    shown = set()
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        shown.add(("medsft/" if indent else "") + name)
    missing = [name for name in shown if not (REPOSITORY / name).exists()]
    assert not missing
    packages = {f"medsft/{path.parent.name}/" for path in REPOSITORY.glob("medsft/*/__init__.py")}
    assert packages <= shown


@pytest.mark.parametrize("readme", READMES)
def test_the_run_folder_is_as_shown(readme):
    from medsft.run_folder import RunFolder

    folder = RunFolder(Path("run"))
    names = {
        folder.description,
        folder.metrics,
        folder.tensorboard,
        folder.model,
        folder.data_cache,
        folder.done,
    }
    names |= {folder.snapshot(500).parent}
    (tree,) = [block for block in blocks(readme, "text") if block.startswith("runs/first/")]
    shown = {line.split()[0].rstrip("/") for line in tree.splitlines()[1:]}
    assert shown == {path.name for path in names}
    assert folder.snapshot(500).name in tree
    assert {unquoted(row[0]) for row in table_under("docs/training.md", "name")} == shown


@pytest.mark.parametrize("readme", READMES)
def test_numbers_about_model_and_recipe(readme):
    from medsft.chatglm import ChatGLMConfig
    from medsft.chatglm.init import PRESETS, count_parameters
    from medsft.data.plan import StepPlan

    text = read(readme)
    config = ChatGLMConfig(vocab_size=130_528, **PRESETS["6b"])
    assert f"{count_parameters(config):,}" in text
    # bf16 weights, fp32 gradients, fp32 master and two moments.
    for num_bytes in (2, 4, 4 + 4 + 4):
        assert f"{count_parameters(config) * num_bytes / 1e9:.0f} GB" in text
    assert "7,622" in text
    assert f"{StepPlan.for_run(7622, '', 16, 0, 3.0).num_steps:,}" in text
    assert f"{round(20_000 * config.hidden_size / 1e6)} million" in text or "8,200 万" in text
    assert f"{count_parameters(config) * 2 / 1e9:.1f} GB in bf16" in read("docs/training.md")
    # "under a million": with the 1,500 ids that `medsft tokenizer` makes, and more.
    toy = ChatGLMConfig(vocab_size=130_528, **PRESETS["toy"])
    assert count_parameters(toy) - (toy.vocab_size - 4000) * toy.hidden_size < 1_000_000


def test_exit_codes():
    from launcher import exit_codes as of_launcher
    from medsft import exit_codes as of_medsft

    defined = {
        (name, value)
        for module in (of_medsft, of_launcher)
        for name, value in vars(module).items()
        if name.isupper()
    }
    rows = table_under("docs/exit-codes.md", "code")
    shown = {(unquoted(row[1]), int(row[0])) for row in rows if row[0].isdigit()}
    assert shown == defined
    assert [row[0] for row in rows if not row[0].isdigit()] == ["128 + n"]


def test_the_batch_table_is_what_the_trainer_settles():
    from medsft.engine.deepspeed_config import resolve_batch

    rows = table_under("docs/training.md", "ranks")
    assert len(rows) >= 4
    for row in rows:
        ranks, size, accumulation, total, examples, micro_batches = (
            None if cell == "—" else int(cell) for cell in row
        )
        batch = resolve_batch(ranks, size, accumulation, total)
        assert (batch.global_size, batch.num_micro_batches) == (examples, micro_batches)


def test_metrics_and_their_tags():
    from medsft.monitor.metrics import Metrics
    from medsft.monitor.tensorboard import TAGS

    rows = table_under("docs/training.md", "field")
    assert {unquoted(row[0]) for row in rows} == {field.name for field in fields(Metrics)}
    assert {unquoted(row[0]): unquoted(row[1]) for row in rows if row[0] != "`step`"} == TAGS


def test_yaml_examples_are_accepted(tmp_path):
    from medsft.config import parse

    for document in (*READMES, "docs/training.md"):
        for number, block in enumerate(blocks(document, "yaml")):
            path = tmp_path / f"{number}.yaml"
            path.write_text(block, encoding="utf-8")
            flags = parse(["--config", str(path)]).flags()
            assert yaml.safe_load(block).keys() <= flags.keys()
            assert flags["learning_rate"] == float(yaml.safe_load(block)["learning_rate"])


def test_the_data_layouts_are_read(tmp_path):
    from medsft.data.records import read_files

    (block,) = blocks("docs/data.md", "json")
    (tmp_path / "shown.jsonl").write_text(block, encoding="utf-8")
    records = read_files([tmp_path / "shown.jsonl"])
    assert not records.bad
    assert len(records.examples) == len(block.splitlines())
    chat, *_, last = records.examples
    assert (chat.query, chat.response) == ("三天。", "建议到神经内科就诊。")
    assert chat.history == (("你是医生。\n头痛怎么办？", "痛了多久？"),)
    assert last.history == (("头痛怎么办？", "痛了多久？"),)


def test_the_templates_are_as_written():
    from medsft.data.template import TEMPLATES, render

    rows = table_under("docs/data.md", "template")
    assert {unquoted(row[0]) for row in rows} == set(TEMPLATES)
    words = {"q": "头痛怎么办？", "q0": "你好", "a0": "你好，请说。"}
    for name, first, later in (map(unquoted, row) for row in rows):
        filled = [text.replace("\\n", "\n").format(**words) for text in (first, later)]
        assert render(name, words["q"]) == filled[0]
        assert render(name, words["q"], ((words["q0"], words["a0"]),)) == filled[1]


def test_file_kinds_and_reasons_of_bad_lines():
    from medsft.data.build import FIRST_BAD
    from medsft.data.files import SUFFIXES

    shown = {unquoted(name) for row in table_under("docs/data.md", "ending") for name in row[0].split(", ")}
    assert shown == set(SUFFIXES)
    code = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "medsft/data").glob("*.py"))
    raised = set(re.findall(r'(?:BadRecord|BadLine)\((?:value\.source, )?"([^"]+)"', code))
    raised.add(NOT_UTF8)
    documented = {
        unquoted(name) for row in table_under("docs/data.md", "reason") for name in row[0].split(", ")
    }
    assert documented == raised
    assert FIRST_BAD == 10  # "the first ten"


def test_limits_in_the_data_document():
    from medsft.config import parse

    flags = parse(REQUIRED).flags()
    for name in ("max_source_length", "max_target_length", "max_bad_share"):
        assert f"`--{name}` ({flags[name]})" in read("docs/data.md")


def test_quoted_messages_are_ones_that_the_program_says():
    sources = [path for folder in ("medsft", "launcher") for path in (REPOSITORY / folder).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources) + read("Makefile")
    # A message may be split over lines of the source.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    headings = re.findall(r"^### (.*)$", read("docs/troubleshooting.md"), flags=re.MULTILINE)
    quoted = [text for heading in headings for text in re.findall(r"`([^`]+)`", heading)]
    assert len(quoted) >= 8
    for text in quoted:
        assert text in code, text


def test_documents_name_no_machine():
    for document in DOCUMENTS:
        assert not re.search(r"(?<!\w)/(?:work|root|tmp)/", read(document)), document


def test_json_blocks_are_json():
    for document in DOCUMENTS:
        for block in blocks(document, "json"):
            for line in block.splitlines():
                json.loads(line)
