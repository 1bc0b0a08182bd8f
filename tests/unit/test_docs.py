"""What the documents say, held against the code: links, numbers, names, defaults, messages."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints
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
# What decides about checkpoints: docs/checkpoints.md lists all of them.
CHECKPOINT_FLAGS = re.compile(r"save_.*|keep_.*|on_save_failure|resume_from_checkpoint|allow_changed")
# Flags of other programs that the documents name.
FOREIGN_FLAGS = {
    "--hostfile",
    "--master_addr",
    "--master_port",
    "--mem",
    "--signal",
    "--requeue",
    "--time",
    "--help",
}


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


def default_of(flag: str) -> Any:
    from medsft.config import parse

    return parse(REQUIRED).flags()[flag.removeprefix("--")]


def check_default(flag: str, shown: str) -> None:
    """A default as a table shows it: — stands for none."""
    default = default_of(flag)
    if shown == "—":
        assert default is None or default == [], flag
    elif isinstance(default, bool):
        assert shown == str(default).lower(), flag
    elif isinstance(default, int | float):
        assert float(shown) == default, flag
    else:
        assert shown == default, flag


@cache
def flag_names() -> frozenset[str]:
    """Every long option of the training, the launcher and the medsft command."""
    import typer

    from medsft.cli import app
    from medsft.config import parse

    names = {f"--{name}" for name in parse(REQUIRED).flags()} | {"--config"}
    for action in ("run", "check", "node"):
        launcher = [sys.executable, "-m", "launcher", action, "--help"]
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
    rows = [table[1:] for table in tables(read(readme)) if table[1][0].startswith("`--")]
    (rows,) = rows
    assert len(rows) > 20
    for flag, shown, meaning in rows:
        check_default(unquoted(flag), shown)
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
    from launcher import run_folder as launcher_run_folder
    from medsft.run_folder import RunFolder, step_name

    folder = RunFolder(Path("run"))
    properties = {name for name, value in vars(RunFolder).items() if isinstance(value, property)}
    names = {getattr(folder, name).name for name in properties - {"stop"}}  # STOP is the user's
    (tree,) = [block for block in blocks(readme, "text") if block.startswith("runs/first/")]
    shown = {line.split()[0].rstrip("/") for line in tree.splitlines()[1:]}
    assert shown == names | {launcher_run_folder.RunFolder(Path("run")).logs.name}
    assert f"{step_name(500)}/" in tree
    assert {unquoted(row[0]) for row in table_under("docs/training.md", "name")} == shown
    assert f"named `{folder.stop.name}`" in read("docs/training.md")


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
    assert {unquoted(row[0]): unquoted(row[1]) for row in rows if row[1].startswith("`")} == TAGS


def test_what_is_told_of_a_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from medsft.monitor.metrics import Save
    from medsft.monitor.metrics_file import MetricsFile
    from medsft.monitor.tensorboard import TensorBoard

    for sink in (MetricsFile(tmp_path / "metrics.jsonl"), TensorBoard(tmp_path)):
        sink.checkpoint(Save(step=5, stall_s=0.5, write_s=2.0, num_bytes=3 * 10**9))
        sink.close()
    record = json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8"))
    rows = table_under("docs/training.md", "field of a checkpoint")
    assert {unquoted(row[0]) for row in rows} == record.keys() - {"kind", "time"}
    assert record["kind"] == "checkpoint" and "start, train, validation, samples or checkpoint" in read(
        "docs/training.md"
    )
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {unquoted(row[1]) for row in rows if row[0] != "`step`"} == set(events.Tags()["scalars"])
    (size,) = events.Scalars("saving/size_gb")
    assert size.value == 3.0


def test_checkpoint_flags_have_their_defaults():
    from medsft.config import RunConfig
    from medsft.training.saving import DEFAULT_SAVE_MINUTES, DEFAULT_SAVE_STEPS

    rows = {unquoted(row[0]): row[1:] for row in table_under("docs/checkpoints.md", "flag")}
    all_of_them = {f"--{f.name}" for f in fields(RunConfig) if CHECKPOINT_FLAGS.fullmatch(f.name)}
    assert rows.keys() == all_of_them
    for flag, (shown, _) in rows.items():
        check_default(flag, shown)
    assert f"({DEFAULT_SAVE_STEPS})" in rows["--save_steps"][1]
    assert f"({DEFAULT_SAVE_MINUTES:.0f})" in rows["--save_minutes"][1]
    for readme in READMES:
        (row,) = [line for line in read(readme).splitlines() if line.startswith("| `--save_steps`")]
        assert str(DEFAULT_SAVE_STEPS) in row


def test_every_choice_for_checkpoints_is_there():
    from medsft.config import CHANGEABLE, RunConfig

    strategies, on_failure = (
        set(get_args(get_type_hints(RunConfig)[name])) for name in ("save_strategy", "on_save_failure")
    )
    text = read("docs/checkpoints.md")
    assert {unquoted(row[0]) for row in table_under("docs/checkpoints.md", "`--save_strategy`")} == strategies
    assert {unquoted(row[0]) for row in table_under("docs/checkpoints.md", "name")} == set(CHANGEABLE)
    assert all(f"`{name}`" in text for name in on_failure)
    for readme in READMES:
        (row,) = [line for line in read(readme).splitlines() if line.startswith("| `--save_strategy`")]
        assert set(re.findall(r"`(\w+)`", row)) == strategies


def test_what_a_checkpoint_of_chatglm_costs():
    from medsft.chatglm import ChatGLMConfig
    from medsft.chatglm.init import PRESETS, count_parameters
    from medsft.engine.adam import STATES

    bytes_a_parameter = 4 * len(STATES)
    num_parameters = count_parameters(ChatGLMConfig(vocab_size=130_528, **PRESETS["6b"]))
    gb = bytes_a_parameter * num_parameters / 1e9
    kept = default_of("--save_total_limit")
    text = read("docs/checkpoints.md")
    assert f"{bytes_a_parameter} bytes, which is {gb:.0f} GB for ChatGLM-6B" in text
    assert f"{gb / 8:.1f} GB from each of eight" in text
    # While one more is written; with validation the best one may be older than those that are kept.
    assert f"{(kept + 1) * gb:.0f} GB for ChatGLM-6B with the defaults, {(kept + 2) * gb:.0f} GB" in text
    assert f"默认 {(kept + 1) * gb:.0f} GB，有验证集时 {(kept + 2) * gb:.0f} GB" in text
    assert f"{num_parameters * 2 / 1e9:.1f} GB in bf16" in text
    three = {3: "three must fit"}[kept + 1]
    assert f"takes {gb:.0f} GB" in read("README.md") and three in " ".join(read("README.md").split())
    assert f"占 {gb:.0f} GB" in read("README.zh.md") and "放得下三个" in read("README.zh.md")
    assert f"copy for checkpoints {gb:.0f} GB on top" in " ".join(read("docs/troubleshooting.md").split())


def test_deepspeed_settings_that_hide_states_are_those_that_are_refused():
    from medsft.engine import state
    from medsft.engine.state import check_reachable
    from medsft.errors import UserError

    (line,) = [part for part in read("docs/checkpoints.md").split("\n- ") if "are refused when" in part]
    named = re.findall(r"`((?:offload_optimizer|zero_optimization)\.\w+)`", line)
    values = {
        "ratio": 0.3,
        "mics_shard_size": 2,
        "zero_hpz_partition_size": 2,
        "zenflow": {"topk_ratio": 0.1},
    }
    for name in named:
        block, key = name.split(".")
        setting = {key: values.get(key, True)}
        zero = {"stage": 3, **(setting if block == "zero_optimization" else {block: setting})}
        with pytest.raises(UserError, match=re.escape(name)):
            check_reachable({"zero_optimization": zero})
    source = read("medsft/engine/state.py").split("def check_reachable")[1].split("\ndef ")[0]
    refused = [*state._HARMLESS, *re.findall(r"offload_optimizer\.(\w+) is", source)]
    for names in re.findall(r"for name in (\(.*?\)):", source):
        refused += re.findall(r'"(\w+)"', names)
    assert sorted(name.split(".")[1] for name in named) == sorted(refused)
    for path in REPOSITORY.glob("ds_configs/*.json"):
        check_reachable(json.loads(path.read_text(encoding="utf-8")))


def test_what_stops_a_run_and_with_which_code():
    from medsft import exit_codes
    from medsft.engine import stop
    from medsft.run_folder import RunFolder

    rows = {row[0]: row[1:] for row in table_under("docs/checkpoints.md", "")}
    signals = {name for cell in rows for name in re.findall(r"`(SIG\w+)`", cell)}
    assert signals == {number.name for number in stop._SIGNALS}
    assert f"`{RunFolder(Path('run')).stop.name}`" in rows
    for what, (in_set_up, in_training, at_the_end) in rows.items():
        interrupted = exit_codes.INTERRUPTED if "SIGINT" in what else exit_codes.STOPPED
        assert in_set_up.endswith(f", {interrupted}"), what
        assert in_training.endswith(f", {exit_codes.STOPPED}"), what
        assert at_the_end.endswith(f", {exit_codes.FINISHED}"), what
    for document in (*READMES, "docs/checkpoints.md"):
        assert f"touch runs/first/{RunFolder(Path('run')).stop.name}" in read(document)
    job = read("slurm/train_8xa100.sh")
    assert "\n#SBATCH --signal=B:USR1@600\n" in job and "Ten minutes before the time limit" in job
    assert f"code {exit_codes.STOPPED}" in job.replace("\n#", "")
    assert "`SIGUSR1` sent ten minutes before" in " ".join(read("docs/checkpoints.md").split())


def test_figures_of_the_launcher_and_the_watchdog():
    from launcher import options as launcher_options
    from launcher.exit_codes import GAVE_UP
    from launcher.supervision import watch

    options = launcher_options.parse(["run", "train.py"])
    text = " ".join(read("docs/checkpoints.md").split())
    grace = f"{options.stop_grace:.0f}"
    assert f"waits `--stop-grace` seconds ({grace})" in text
    assert f"`--stop-grace` 秒（{grace}）" in text
    assert f"`--stop-grace` seconds ({grace})" in read("docs/troubleshooting.md")
    assert {3: "a third Ctrl-C"}[watch._STOPS_THAT_KILL] in text
    assert f"the exit code is {GAVE_UP}" in text
    assert f"`--distributed_timeout_min` minutes ({default_of('--distributed_timeout_min')})" in text


def commands_of(document: str) -> list[list[str]]:
    """Our commands in the bash blocks of a document, as words."""
    lines = [line for block in blocks(document, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.mark.parametrize("words", commands_of("docs/checkpoints.md"), ids=" ".join)
def test_commands_about_checkpoints_are_taken(words, tmp_path):
    import typer

    from launcher import options
    from medsft.cli import app
    from medsft.config import parse

    if words[0] == "medsft":
        command, rest = typer.main.get_command(app), words[1:]
        while hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(" ".join(words), rest)
    elif words[0] == "python":
        assert words[1:3] == ["-m", "launcher"]
        script, *arguments = options.parse(words[3:]).script
        assert (REPOSITORY / script).is_file()
        (yaml_text,) = blocks("README.md", "yaml")
        (tmp_path / "train.yaml").write_text(yaml_text, encoding="utf-8")
        parse([str(tmp_path / word) if word == "train.yaml" else word for word in arguments])
    else:
        assert words[0] == "touch"  # held against the name of the file elsewhere


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
    assert len(quoted) >= 16
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
