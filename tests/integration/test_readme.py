"""Both READMEs: every command they show runs in toy form or is held against the program that it calls."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from runs import REPOSITORY, read_metrics

READMES = ("README.md", "README.zh.md")
# Where the READMEs put what users bring or make themselves.
USERS_OWN = ("models", "data", "runs", "demo_output")


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read(name), flags=re.DOTALL | re.MULTILINE)


def prose(name: str) -> str:
    """A README without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(name), flags=re.DOTALL | re.MULTILINE)


def headings(name: str) -> list[int]:
    """Levels of the headings, in order."""
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(name), flags=re.MULTILINE)]


def split_commands(block: str) -> list[tuple[str, ...]]:
    """The single commands of a shell block, as words; comments are dropped."""
    commands: list[tuple[str, ...]] = []
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word not in ("&&", "||", "|", ";"):
                words.append(word)
            elif words:
                commands.append(tuple(words))
                words = []
    return commands


def shown_commands(name: str) -> list[tuple[str, ...]]:
    """Commands of all bash blocks, and of code within sentences that begins with a command of ours."""
    commands = [command for block in blocks(name, "bash") for command in split_commands(block)]
    inline = re.findall(r"`((?:medsft|make|python -m launcher) [^`]+)`", prose(name))
    return commands + [command for line in inline for command in split_commands(line)]


COMMANDS = sorted(set(shown_commands("README.md")))


def test_both_languages_show_the_same():
    english, chinese = READMES
    for language in ("bash", "yaml", "json", "text"):
        assert len(blocks(english, language)) == len(blocks(chinese, language))
    in_blocks = [[split_commands(block) for block in blocks(name, "bash")] for name in READMES]
    assert in_blocks[0] == in_blocks[1]
    assert len(in_blocks[0]) > 10
    assert set(shown_commands(english)) == set(shown_commands(chinese))
    for language in ("yaml", "json"):
        assert blocks(english, language) == blocks(chinese, language)
    assert headings(english) == headings(chinese)


@pytest.fixture
def at_repository(monkeypatch, tmp_path) -> Callable[[Sequence[str]], list[str]]:
    """The current folder is the repository's; gives a function that points words at a real train.yaml."""
    (yaml,) = blocks("README.md", "yaml")
    (tmp_path / "train.yaml").write_text(yaml, encoding="utf-8")
    monkeypatch.chdir(REPOSITORY)
    return lambda words: [str(tmp_path / word) if word == "train.yaml" else word for word in words]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_command_would_work(command, at_repository):
    settings = [word for word in command if re.fullmatch(r"[A-Z_]+=.*", word)]
    words = at_repository(command[len(settings) :] if command[0] in settings else command)
    assert words[0] in CHECKS, f"no check for {words[0]!r}: write one"
    CHECKS[words[0]](words[1:], settings)
    for word in words[1:]:
        if re.match(r"(medsft|launcher|ds_configs|slurm|examples|benchmarks|docs|hostfile)\b[/.\w]*$", word):
            assert Path(word).exists() or word in ("medsft", "launcher"), word


def check_training(arguments: Sequence[str]) -> None:
    """Flags of medsft/train.py are known, fit their types, and name a DeepSpeed JSON of the repository."""
    from medsft.config import parse

    config = parse(arguments)
    assert Path(config.run.deepspeed).is_file()
    folders = [config.model.model_name_or_path, *config.data.train_file, config.run.output_dir]
    assert {Path(folder).parts[0] for folder in folders} <= set(USERS_OWN)


def check_launcher(arguments: Sequence[str]) -> None:
    """The launcher accepts its own flags (a dry run shows the ranks); the script's are checked apart."""
    from launcher import options

    assert options.parse(list(arguments)).action in ("run", "check")
    check_training(arguments[arguments.index("medsft/train.py") + 1 :])
    if arguments[0] == "check":
        return
    dry = [sys.executable, "-m", "launcher", "run", "--dry-run", *arguments[1:]]
    done = subprocess.run(dry, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ranks = [line for line in done.stdout.splitlines() if line.startswith("rank ")]
    num_ranks = 16 if "--hostfile" in arguments else int(arguments[arguments.index("--num-gpus") + 1])
    assert len(ranks) == num_ranks


def check_python(arguments: Sequence[str], settings: Sequence[str]) -> None:
    if list(arguments) == ["-m", "launcher"]:  # named in a sentence
        return
    if arguments[:2] == ["-m", "launcher"]:
        check_launcher(arguments[2:])
    else:
        assert arguments[0] == "medsft/train.py"
        check_training(arguments[1:])


def check_deepspeed(arguments: Sequence[str], settings: Sequence[str]) -> None:
    from deepspeed.launcher.runner import parse_args

    from launcher.hosts.hostfile import read_hostfile

    options = parse_args(arguments)
    assert read_hostfile(Path(options.hostfile))
    assert options.user_script == "medsft/train.py"
    check_training(options.user_args)


def check_mpirun(arguments: Sequence[str], settings: Sequence[str]) -> None:
    """As many processes as its hosts have slots; the flags are tried in the cluster's tests."""
    hosts = arguments[arguments.index("--host") + 1]
    slots = [int(host.partition(":")[2]) for host in hosts.split(",")]
    assert int(arguments[arguments.index("-n") + 1]) == sum(slots)
    check_training(arguments[arguments.index("medsft/train.py") + 1 :])


def check_torchrun(arguments: Sequence[str], settings: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    assert options.training_script == "medsft/train.py"
    check_training(options.training_script_args)


def check_sbatch(arguments: Sequence[str], settings: Sequence[str]) -> None:
    """Variables before the command are read by the job script; flags after it are the training's."""
    from medsft.config import parse

    place = next(place for place, word in enumerate(arguments) if word.startswith("slurm/"))
    script, flags = read(arguments[place]), arguments[place + 1 :]
    assert settings or "--config" in flags
    for setting in settings:
        assert re.search(rf"\$\{{{setting.split('=')[0]}:[-=]", script)
    if "--config" in flags:
        check_training(flags)
    else:
        parse(["--model_name_or_path", "m", "--train_file", "t", "--output_dir", "o", *flags])


def check_medsft(arguments: Sequence[str], settings: Sequence[str]) -> None:
    """The subcommand exists and takes these options; a command named in a sentence need not be complete."""
    import typer

    from medsft.cli import app

    command, *rest = typer.main.get_command(app), *arguments
    while rest and hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    if rest and rest != ["--help"]:
        command.make_context(" ".join(arguments), rest)


def check_make(arguments: Sequence[str], settings: Sequence[str]) -> None:
    targets = re.findall(r"^([a-z]+):", read("Makefile"), flags=re.MULTILINE)
    assert arguments[0] in targets


def check_activate(arguments: Sequence[str], settings: Sequence[str]) -> None:
    (folder,) = re.findall(r"^VENV := (.*)$", read("Makefile"), flags=re.MULTILINE)
    assert list(arguments) == [f"{folder}/bin/activate"]


def check_hf(arguments: Sequence[str], settings: Sequence[str]) -> None:
    hf = Path(sys.executable).with_name("hf")
    done = subprocess.run([hf, arguments[0], "--help"], capture_output=True, text=True, check=True)
    for option in (word for word in arguments if word.startswith("--")):
        assert option in done.stdout


def check_tensorboard(arguments: Sequence[str], settings: Sequence[str]) -> None:
    from tensorboard import program

    program.TensorBoard().configure(["tensorboard", *arguments])
    assert Path(sys.executable).with_name("tensorboard").exists()


def check_clone(arguments: Sequence[str], settings: Sequence[str]) -> None:
    assert list(arguments) == ["clone", "REPOSITORY", "medsft"]


def check_entering(arguments: Sequence[str], settings: Sequence[str]) -> None:
    assert ("git", "clone", "REPOSITORY", *arguments) in COMMANDS


def check_touch(arguments: Sequence[str], settings: Sequence[str]) -> None:
    """The one file that a user makes: the one that stops a run."""
    from medsft.run_folder import RunFolder

    (file,) = map(Path, arguments)
    assert file == RunFolder(file.parent).stop
    assert file.parts[0] in USERS_OWN


def check_printf(arguments: Sequence[str], settings: Sequence[str]) -> None:
    """Runs, before the model that it feeds, in the test below."""
    assert arguments


CHECKS: dict[str, Callable[[Sequence[str], Sequence[str]], None]] = {
    "python": check_python,
    "deepspeed": check_deepspeed,
    "torchrun": check_torchrun,
    "mpirun": check_mpirun,
    "sbatch": check_sbatch,
    "medsft": check_medsft,
    "make": check_make,
    ".": check_activate,
    "hf": check_hf,
    "tensorboard": check_tensorboard,
    "git": check_clone,
    "cd": check_entering,
    "touch": check_touch,
    "printf": check_printf,
}


def the_block(text: str) -> str:
    """The one bash block of the English README that contains a text; the other README has the same."""
    (found,) = [block for block in blocks("README.md", "bash") if text in block]
    return found


def replaced(text: str, *changes: tuple[str, str]) -> str:
    """Toy values in the place of real ones; each must be there to be replaced."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A copy of the code in a folder with a blank and Chinese in its name, as after `git clone`."""
    folder = tmp_path_factory.mktemp("克隆") / "我的 项目"
    for name in ("medsft", "launcher", "ds_configs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_shell(script: str, folder: Path) -> str:
    """Runs what a user would type there, with the environment activated; gives what is printed."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in ranks}
    environment.update(
        PATH=f"{Path(sys.executable).parent}:{environment['PATH']}", OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu"
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_own_data_from_files_to_answers(workplace):
    """Toy data and model, training through the launcher, chat from a pipe, training from YAML: as shown."""
    run_shell(the_block("medsft tokenizer"), workplace)
    toy_model = ("models/chatglm-6b", "models/toy")
    training = replaced(the_block("--output_dir runs/first"), ("--num-gpus 8", "--num-gpus 2"), toy_model)
    output = run_shell(f"{training.rstrip()} --max_steps 3 --max_train_samples 64", workplace)
    assert "supervised (" in output
    assert (workplace / "runs/first/DONE").exists()
    assert [record["step"] for record in read_metrics(workplace / "runs/first")] == [3]

    again = run_shell(f"{training.rstrip()} --max_steps 3 --max_train_samples 64", workplace)
    assert "nothing to do" in again
    longer = run_shell(f"{training.rstrip()} --max_steps 5 --max_train_samples 64", workplace)
    assert "step 3 of 5" in longer
    stop, *looking = the_block("medsft checkpoint list").splitlines()
    assert split_commands(stop) == [("touch", "runs/first/STOP")]  # nothing runs there now
    shown = run_shell("\n".join(looking), workplace)
    assert "complete, latest" in shown
    assert "step-00000005: intact" in shown
    assert "step 5 as bf16: models/first-newest" in shown

    *_, piped = the_block("printf").splitlines()
    answers = run_shell(f"{piped} --max_new_tokens 6", workplace)
    assert len(answers.splitlines()) == piped.count("\\n")

    (yaml,) = blocks("README.md", "yaml")
    (workplace / "train.yaml").write_text(replaced(yaml, toy_model), encoding="utf-8")
    (single,) = [line for line in the_block("torchrun").splitlines() if line.startswith("python medsft/")]
    run_shell(f"{single} --max_steps 1", workplace)
    flags = json.loads((workplace / "runs/second/run.json").read_text(encoding="utf-8"))["flags"]
    assert flags["learning_rate"] == 2e-5
    assert flags["max_steps"] == 1
    assert (workplace / "runs/second/DONE").exists()


def test_a_graph_of_ones_own(workplace, monkeypatch):
    """The entity that is shown becomes pairs by the command that is shown."""
    from typer.testing import CliRunner

    from medsft.cli import app
    from medsft.data.records import read_files

    (record,) = [block for block in blocks("README.md", "json") if "中心词" in block]
    (workplace / "data").mkdir(exist_ok=True)
    (workplace / "data/graph.jsonl").write_text(record, encoding="utf-8")
    monkeypatch.chdir(workplace)
    ((program, *arguments),) = split_commands(the_block("data/graph.jsonl"))
    assert program == "medsft"
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    examples = read_files([workplace / "data/train.jsonl"]).examples
    assert any("偏头痛" in example.query and "神经内科" in example.response for example in examples)


def test_every_data_line_that_is_shown_is_an_example(tmp_path):
    from medsft.data.records import read_files

    shown = [block for block in blocks("README.md", "json") if "中心词" not in block]
    (tmp_path / "shown.jsonl").write_text("".join(shown), encoding="utf-8")
    records = read_files([tmp_path / "shown.jsonl"])
    assert len(records.examples) == 5
    assert not records.bad
