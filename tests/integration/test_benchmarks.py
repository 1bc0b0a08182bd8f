"""The scripts in benchmarks/ run, on a model so small that their figures mean nothing."""

import importlib
import json
import subprocess
import sys

import pytest
import torch
from chat_toy import PAIRS
from runs import REPOSITORY, clean_environment

BYTES_A_PARAMETER = 12  # fp32 weight and two moments


@pytest.mark.slow
def test_checkpoint_benchmark(tmp_path):
    results, place = tmp_path / "结果 tables", tmp_path / "临时 place"
    results.mkdir()
    place.mkdir()
    smallest = ["--params", "1e6", "--ranks", "2", "--repetitions", "1", "--starts", "1", "--examples", "1"]
    places = ["--folder", str(place), "--results", str(results)]
    done = subprocess.run(
        [sys.executable, "benchmarks/checkpoint.py", *smallest, *places],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(place.iterdir())
    tables = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")}
    assert {path.stem for path in results.glob("*.md")} == set(tables)
    assert set(tables) == {"checkpoint", "checkpoint_starts", "checkpoint_steps"}

    saves = {row["way"]: row for row in tables["checkpoint"]["rows"]}
    num_params = int(tables["checkpoint"]["settings"]["parameters"].replace(",", ""))
    assert len(saves) == 9
    for row in saves.values():
        assert row["ranks"] == 2
        assert 0 < row["min"] <= row["s (median)"] <= row["max"]
        expected_gb = num_params * BYTES_A_PARAMETER / 1e9
        assert expected_gb < row["GB"] < 1.2 * expected_gb  # configuration and tokenizer come along
    assert saves["plain file copy, flushed"]["times the copy"] == 1

    starts = {row["start"]: row for row in tables["checkpoint_starts"]["rows"]}
    assert set(starts) == {"fresh", "resumed, saved by 2", "DeepSpeed, saved by 2"}
    assert starts["resumed, saved by 2"]["verify s"] > 0
    assert starts["fresh"]["times fresh"] == starts["fresh"]["times fresh's"] == 1

    (steps,) = tables["checkpoint_steps"]["rows"]
    assert steps["write s"] > 0


@pytest.mark.slow
def test_launch_benchmark(tmp_path):
    """On this machine only: two starts of two ranks."""
    results = tmp_path / "结果 tables"
    results.mkdir()
    smallest = ["--local", "--rounds", "1", "--step_rounds", "0", "--hosts", "1", "70"]
    done = subprocess.run(
        [sys.executable, "benchmarks/launch.py", *smallest, "--results", str(results)],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tables = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")}
    assert set(tables) == {"launch", "launch_check"}
    bare, ours = tables["launch"]["rows"]
    assert (bare["way"], ours["way"], ours["until"]) == ("deepspeed", "launcher, local", "the ranks")
    assert bare["times deepspeed's"] == 1
    assert min(bare["s (median)"], ours["s (median)"]) > 0
    few, many = tables["launch_check"]["rows"]
    assert (few["hosts"], many["hosts"], few["red"], many["red"]) == (1, 70, 0, 0)
    # The first host is asked before the others, and these 64 at a time.
    assert few["min"] >= 0.3
    assert many["min"] >= 3 * 0.3


@pytest.mark.slow
def test_the_whole_recipe(tmp_path):
    """From a random model and made-up pairs to the table, by the real trainer."""
    smallest = ["--preset", "toy", "--vocab_size", "2048", "--steps", "4", "--gradient_checkpointing", "true"]
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_full_recipe.py", *smallest, "--results", str(tmp_path)],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "gpu_full_recipe.json").read_text("utf-8"))
    (row,) = made["rows"]
    assert made["settings"]["examples"] == "7,622"
    assert made["settings"]["further flags"] == "--gradient_checkpointing true"
    assert (row["configuration"], row["steps"]) == ("zero3_cpu.json", 4)
    assert row["packing %"] > 97
    assert 0 < row["training s"] < row["whole s"]
    assert row["step s"] == pytest.approx(row["forward s"] + row["backward s"] + row["optimiser s"], rel=0.5)
    # A step of 16 examples of 69 tokens on average; the medians of speed and time are of the same steps.
    assert row["useful tokens/s"] * row["step s"] == pytest.approx(16 * 69, rel=0.5)


@pytest.fixture
def benchmarks(monkeypatch):
    """Modules of benchmarks/, by name."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module


def test_a_gpu_session_measures_everything_that_is_left_to_measure(benchmarks, monkeypatch, capsys):
    made = benchmarks("gpu_session").session("6b", has_gpu=True, short=False)
    assert {f"gpu_memory_{path.stem}" for path in (REPOSITORY / "ds_configs").glob("*.json")} < set(made)
    recipe = benchmarks("gpu_full_recipe")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, words in made.items():
        assert (REPOSITORY / words[0]).exists()
        assert words[-2:] == ["--name", name]
        if words[0].endswith("gpu_full_recipe.py"):
            options, more = recipe.parse_options(words[1:])
            assert (options.preset, options.name) == ("6b", name)
            assert more == (["--torch_compile", "true"] if name == "gpu_recipe_compiled" else [])
    assert recipe.parse_options(made["gpu_recipe_32gib"][1:])[0].cap_gib == 32
    assert "gpu_full_recipe" not in benchmarks("gpu_session").session("6b", has_gpu=True, short=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, message in (
        (["--cap_gib", "32"], "--cap_gib caps the memory of a GPU, and there is none"),
        (["--steps", "0"], "--steps: '0' must be a whole number, 1 or more"),
        (["--train_file", "x"], "--train_file needs the --tokenizer"),
    ):
        with pytest.raises(SystemExit) as caught:
            recipe.parse_options(words)
        assert caught.value.code == 2 and message in capsys.readouterr().err


def test_a_cap_leaves_room_for_what_cuda_takes_itself(benchmarks):
    share_of = benchmarks("gpu_full_recipe_rank").share_of
    assert share_of(32, 150e9) == pytest.approx((32 * 2**30 - 1.5e9) / 150e9)
    assert share_of(1000, 150e9) == 1
    assert share_of(1, 150e9) == 0


@pytest.mark.slow
def test_generate_benchmark(tmp_path):
    smallest = ["--num_prompts", "3", "--num_tokens", "4", "--rounds", "1", "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "benchmarks/generate.py", *smallest],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["way"]: row for row in json.loads((tmp_path / "generate.json").read_text("utf-8"))["rows"]}
    assert len(rows) == 10
    assert rows["generate, single"]["times generate, single"] == 1
    assert all(0 < row["min"] <= row["tokens/s (median)"] <= row["max"] for row in rows.values())
    weights = [
        rows[f"side by side, 1 row{kind}"]["weights MB"] for kind in ("", ", bf16", ", int8", ", int4")
    ]
    assert weights == sorted(weights, reverse=True)


@pytest.mark.slow
def test_quantize_benchmark(tmp_path, chat_model_dir):
    pairs = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": pair.query, "response": pair.response}) for pair in PAIRS[:2]]
    pairs.write_text("\n".join(lines), encoding="utf-8")
    given = ["--model", chat_model_dir, "--questions", pairs, "--device", "cpu", "--results", tmp_path]
    done = subprocess.run(
        [sys.executable, "benchmarks/quantize.py", *map(str, given)],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "quantize.json").read_text("utf-8"))["rows"]
    assert [row["weights"] for row in rows] == ["as stored", "as stored", "int8", "int4"]
    assert rows[0]["exact answers %"] == 100
    sizes = [row["weights MB"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    tried = json.loads((tmp_path / "quantize_kernels.json").read_text("utf-8"))["rows"]
    assert {(row["bits"], row["way"]) for row in tried} >= {(8, "plain torch"), (4, "plain torch")}
    assert [row["bits"] for row in tried if row["chosen"] == "yes"] == [8, 4]
