"""`medsft checkpoint` and `medsft export` on real checkpoints, as users call them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import REPOSITORY, launch

from medsft.chatglm.weights import check_release, load_model
from medsft.checkpoint.layout import read_latest, steps_in
from medsft.checkpoint.manifest import Validation, read_manifest
from tests.unit.checkpoint_toys import flip_bit, toy_base, write_checkpoint

MEDSFT = str(Path(sys.executable).with_name("medsft"))
STEPS = (50, 100, 150, 200)
LOSSES = {50: 2.25, 100: 1.75, 150: 1.5, 200: 1.875}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return toy_base(tmp_path_factory.mktemp("模型 1") / "基 座")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base) -> Path:
    """The folder of a run with four checkpoints; the one of step 150 has the lowest validation loss."""
    run = tmp_path_factory.mktemp("运行 1") / "out put"
    for step in STEPS:
        validation = Validation(step, LOSSES[step])
        write_checkpoint(run / "checkpoints", base, step, train_loss=300 / step, validation=validation)
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(finished, tmp_path / "运行 2")
    return tmp_path / "运行 2"


def succeeded(result: tuple[int, str, str]) -> str:
    code, output, errors = result
    assert code == 0, output + errors
    return output


def refusal(result: tuple[int, str, str]) -> str:
    """The one paragraph on stderr of a call that ended with exit code 2."""
    code, output, errors = result
    assert code == 2, output + errors
    assert "Traceback" not in errors
    (told,) = [line for line in errors.splitlines() if line.startswith("medsft: error: ")]
    return told


def shard(run: Path, step: int, rank: int = 1) -> Path:
    return run / "checkpoints" / f"step-{step:08}" / f"rank-{rank:05}-of-00002.safetensors"


def rows(table: str) -> dict[int, list[str]]:
    """Step -> cells of its row, in the order shown."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if re.match(r"\s*\d+\s", line)]
    return {int(row[0]): row for row in cells}


def test_list_shows_the_newest_first_whatever_the_clocks_say(run, medsft):
    for age_s, step in enumerate(reversed(STEPS)):
        os.utime(run / "checkpoints" / f"step-{step:08}", (10**9 - age_s, 10**9 - age_s))
    shown = rows(succeeded(medsft("checkpoint", "list", run)))
    assert list(shown) == [200, 150, 100, 50]
    assert shown[200][3:] == ["1.5000", "1.8750", "2", "complete, latest"]
    assert shown[50][3:] == ["6.0000", "2.2500", "2", "complete"]
    size = sum(
        path.stat().st_size for path in (run / "checkpoints/step-00000050").rglob("*") if path.is_file()
    )
    assert shown[50][1] == f"{size / 1000:.1f} kB"
    assert re.fullmatch(r"\d+ d", shown[50][2])
    assert rows(succeeded(medsft("checkpoint", "list", run / "checkpoints"))) == shown


def test_list_tells_what_is_damaged_and_what_is_unfinished(run, medsft):
    short, changed, bare = (
        shard(run, 200),
        run / "checkpoints/step-00000150",
        run / "checkpoints/step-00000100",
    )
    short.write_bytes(short.read_bytes()[:-1])
    manifest = changed / "manifest.json"
    manifest.write_text(
        manifest.read_text(encoding="utf-8").replace('"step": 150', '"step": 151'), encoding="utf-8"
    )
    (bare / "manifest.json").unlink()
    (run / "checkpoints" / ".step-00000250.tmp").mkdir()
    output = succeeded(medsft("checkpoint", "list", run))
    shown = rows(output)
    assert [row[-1] for row in shown.values()] == ["damaged, latest", "damaged", "damaged", "complete"]
    assert shown[200][3] == "1.5000"
    told = {line.partition(": ")[0]: line for line in output.splitlines() if ": " in line}
    assert str(short) in told["step-00000200"]
    assert f"{short.stat().st_size} bytes" in told["step-00000200"]
    assert "SHA-256" in told["step-00000150"]
    assert "missing" in told["step-00000100"]
    assert ".step-00000250.tmp" in told


@pytest.mark.parametrize("command", [("list",), ("verify",), ("show",), ("prune", "--keep-last", 1)])
def test_a_folder_without_checkpoints_is_told(command, tmp_path, medsft):
    name, *options = command
    (tmp_path / "空").mkdir()
    for folder, word in ((tmp_path / "空", "holds no checkpoints"), (tmp_path / "无", "is not there")):
        told = refusal(medsft("checkpoint", name, folder, *options))
        assert word in told
        assert folder.name in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["空"]


def test_verify_finds_one_flipped_bit_of_one_checkpoint(run):
    """In a process of its own, as a job script would ask."""
    bad = shard(run, 150, rank=0)
    flip_bit(bad, 5000)
    done = subprocess.run([MEDSFT, "checkpoint", "verify", run], capture_output=True, text=True, check=False)
    told = refusal((done.returncode, done.stdout, done.stderr))
    assert "1 of 4 checkpoints" in told
    assert "step-00000150" in told
    verdicts = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert [name for name, verdict in verdicts.items() if verdict.startswith("intact")] == [
        f"step-{step:08}" for step in (200, 100, 50)
    ]
    manifest = read_manifest(bad.parent)
    verdict = verdicts["step-00000150"]
    assert verdict.startswith("damaged")
    assert str(bad) in verdict
    assert manifest.files[bad.name].sha256 in verdict
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", verdict))) == 2
    # The sizes alone, which is all that the list looks at, are as they were.
    assert (
        subprocess.run([MEDSFT, "checkpoint", "list", run], capture_output=True, check=False).returncode == 0
    )


def test_verify_of_single_checkpoints(run, medsft):
    folder = run / "checkpoints" / "step-00000100"
    assert succeeded(medsft("checkpoint", "verify", folder)).startswith("step-00000100: intact, 9 files")
    flip_bit(folder / "model" / "ice_text.model")
    told = refusal(medsft("checkpoint", "verify", folder))
    assert "1 of 1" in told
    assert "ice_text.model" in told
    (folder / "manifest.json").unlink()
    assert "manifest.json is damaged: it is missing" in refusal(medsft("checkpoint", "verify", folder))
    assert "is not there" in refusal(medsft("checkpoint", "verify", run / "checkpoints" / "step-00000999"))


def test_show_tells_what_the_manifest_says(run, medsft):
    output = succeeded(medsft("checkpoint", "show", run))
    manifest = read_manifest(run / "checkpoints" / "step-00000200")
    for part in (
        "step-00000200",
        "200 (epoch 4.00)",
        "1.5000",
        "1.8750",
        *(getattr(manifest.identity, name) for name in ("model", "tokenizer", "data")),
        "torch 2.13.0",
        "--learning_rate 0.001",
        '--train_file ["问答 数据.jsonl"]',
        *manifest.files,
        *(entry.sha256 for entry in manifest.files.values()),
    ):
        assert part in output, part
    assert "--seed" not in output, "42 is what the seed is without the flag"
    one = succeeded(medsft("checkpoint", "show", run / "checkpoints" / "step-00000050", "--json"))
    assert json.loads(one) == json.loads((run / "checkpoints/step-00000050/manifest.json").read_text("utf-8"))
    assert json.loads(one)["step"] == 50


def test_prune_keeps_the_last_the_best_and_every_kth(run, medsft):
    root = run / "checkpoints"
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    output = succeeded(medsft("checkpoint", "prune", run, "--keep-last", 1, "--dry-run"))
    assert re.findall(r"^(.*) step-0+(\d+) ", output, re.MULTILINE) == [
        ("would delete", "50"),
        ("would delete", "100"),
        ("keep", "150"),
        ("keep", "200"),
    ]
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    succeeded(medsft("checkpoint", "prune", run, "--keep-last", 1, "--keep-every", 100))
    assert steps_in(root) == [100, 150, 200]
    succeeded(medsft("checkpoint", "prune", root, "--keep-last", 1))
    assert steps_in(root) == [150, 200]
    succeeded(medsft("checkpoint", "prune", run, "--keep-last", 1, "--no-keep-best"))
    assert steps_in(root) == [200]
    succeeded(medsft("checkpoint", "prune", run, "--keep-last", 1, "--no-keep-best"))
    assert (steps_in(root), read_latest(root)) == ([200], 200)
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step-00000200"]


def test_prune_never_leaves_a_run_with_damaged_checkpoints_only(run, medsft):
    newest = shard(run, 200)
    newest.write_bytes(newest.read_bytes()[:-1])
    told = refusal(medsft("checkpoint", "prune", run, "--keep-last", 1))
    assert str(newest) in told
    assert "nothing was deleted" in told
    assert steps_in(run / "checkpoints") == list(STEPS)


def test_a_damaged_checkpoint_is_not_the_best(run, medsft):
    best = shard(run, 150)
    best.write_bytes(best.read_bytes()[:-1])
    succeeded(medsft("checkpoint", "prune", run, "--keep-last", 1))
    assert steps_in(run / "checkpoints") == [100, 200]


def test_prune_leaves_a_live_run_alone(run, medsft):
    """A process that holds the run's lock, as a training does; once it is killed, the folder is free."""
    code = (
        "import sys, time; from pathlib import Path; from medsft.run_lock import claim\n"
        "lock = claim(Path(sys.argv[1]), patience_s=0); print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, run], cwd=REPOSITORY, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        told = refusal(medsft("checkpoint", "prune", run, "--keep-last", 1))
        assert "in use" in told
        assert str(holder.pid) in told
        assert steps_in(run / "checkpoints") == list(STEPS)
        assert "would delete" in succeeded(medsft("checkpoint", "prune", run, "--keep-last", 1, "--dry-run"))
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    succeeded(medsft("checkpoint", "prune", run, "--keep-last", 1))
    assert steps_in(run / "checkpoints") == [150, 200]


def test_export_makes_a_model_that_answers(run, tmp_path):
    output = tmp_path / "导 出"
    export = [sys.executable, "-m", "medsft.cli", "export", run, output]
    done = subprocess.run(export, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 200 as bf16" in done.stdout
    check_release(output, read_everything=True)
    assert load_model(output).dtype == torch.bfloat16
    assert json.loads((output / "medsft.json").read_text(encoding="utf-8"))["step"] == 200
    chat = subprocess.run(
        [MEDSFT, "chat", "--model", output, "--greedy", "--max_new_tokens", "4"],
        input="头痛怎么办？\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert chat.returncode == 0, chat.stderr
    assert len(chat.stdout.splitlines()) == 1


def test_export_of_a_chosen_step_and_type(run, tmp_path, medsft):
    told = refusal(medsft("export", run, tmp_path / "out", "--step", 120))
    assert "120" in told
    assert "50, 100, 150, 200" in told
    output = succeeded(
        medsft("export", run, tmp_path / "out", "--step", 100, "--dtype", "fp32", "--max_shard_size", "40KB")
    )
    assert "step 100 as fp32" in output
    assert load_model(tmp_path / "out").dtype == torch.float32
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    told = refusal(medsft("export", run / "checkpoints" / "step-00000050", tmp_path / "out"))
    assert "not an empty folder" in told
    assert "40 bananas" in refusal(medsft("export", run, tmp_path / "b", "--max_shard_size", "40 bananas"))


def test_export_refuses_a_damaged_checkpoint_unless_told_not_to_look(run, tmp_path, medsft):
    bad = shard(run, 200)
    flip_bit(bad)  # in a moment of Adam's: the weights are what they were
    told = refusal(medsft("export", run, tmp_path / "out"))
    assert str(bad) in told
    assert read_manifest(bad.parent).files[bad.name].sha256 in told
    assert not list(tmp_path.glob("*out*"))
    succeeded(medsft("export", run, tmp_path / "out", "--no-verify"))
    check_release(tmp_path / "out", read_everything=True)


def test_a_killed_export_leaves_no_model(run, tmp_path, medsft):
    output = tmp_path / "out"
    code = (
        "import sys, time; from medsft.chatglm.weights import ShardWriter\n"
        "finish = ShardWriter.finish\n"
        "def slow(self):\n    print('writing', flush=True); time.sleep(600)\n"
        "ShardWriter.finish = slow\n"
        "from medsft import cli; sys.argv = ['medsft', 'export', *sys.argv[1:]]; cli.main()"
    )
    command = [sys.executable, "-c", code, run, output, "--max_shard_size", "40KB"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.kill()
    process.wait()
    assert not output.exists()
    assert (tmp_path / ".out.tmp").exists()
    succeeded(medsft("export", run, output))
    check_release(output)
    assert not (tmp_path / ".out.tmp").exists()


def test_a_checkpoint_and_the_live_model_make_the_same_folder(run, base, tmp_path, medsft):
    """Byte for byte: shards, index, config, tokenizer, card, licence."""
    checkpoint = run / "checkpoints" / "step-00000200"
    arguments = [base, checkpoint, tmp_path / "live", 40_000]
    done = launch(
        list(map(str, arguments)), 2, "torchrun", script=REPOSITORY / "tests/integration/export_worker.py"
    )
    assert done.returncode == 0, done.stderr
    succeeded(medsft("export", checkpoint, tmp_path / "exported", "--max_shard_size", 40_000))
    live, exported = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("live", "exported")
    )
    assert live.keys() == exported.keys()
    assert len(live) > 10
    for name, content in live.items():
        assert content == exported[name], name
    assert not list(tmp_path.glob(".*"))
