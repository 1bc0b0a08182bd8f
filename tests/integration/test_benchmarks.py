"""The scripts in benchmarks/ run, on a model so small that their figures mean nothing."""

import json
import subprocess
import sys

import pytest
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
