"""The launcher reads from a file of settings what the training reads from it, or nothing."""

import os

import pytest

from launcher import run_folder, settings_file
from medsft.config import parse

ABOVE = "model_name_or_path: m\ntrain_file: t\n"
SURE = [
    "output_dir: runs/first",
    "output_dir:   runs/一 个  ",
    "output_dir: runs/first # 第一次",
    "output_dir: runs/a#b:c",
    'output_dir: "runs/with # sign"',
    "output_dir: 'runs/a: b' # comment",
    "output_dir : runs/first",
    "output_dir: runs/old\noutput_dir: runs/new",
    "output_dir: runs/first\n  # a comment further in",
    "output_dir: runs/first\r\nseed: 7\r",
    "---\noutput_dir: runs/first",
    "validation_file:\n- a.jsonl\noutput_dir: runs/first",
    "\ufeffoutput_dir: runs/first",
    "output_dir: ../runs/first",
    "output_dir: runs/first\u3000",
    "output_dir: ~/runs",
    "output_dir: 17",
]
UNSURE = [
    'output_dir: "runs/\\u4e00"',
    "output_dir: 'it''s'",
    "output_dir: runs/first\n  and more",
    "output_dir: runs/first\n\n  and more",
    "output_dir: >-\n  runs/first",
    "output_dir:\n  runs/first",
    "output_dir: !!str runs/first",
    "output_dir: &here runs/first",
    '"output_dir": runs/first',
    'output_dir: runs/first\n"output_dir": runs/second',
    "output_dir: runs/first\n? output_dir\n: runs/second",
]


@pytest.mark.parametrize("text", SURE)
def test_what_stands_on_one_line(text, tmp_path):
    path = tmp_path / "训练 1.yaml"
    path.write_text(f"{text}\n{ABOVE}", encoding="utf-8", newline="")
    expected = parse(["--config", str(path)]).run.output_dir
    assert settings_file.value(path, ["output_dir"]) == expected
    assert run_folder.find([f"--config={path}"]).path.parts[-1] == expected.split("/")[-1]


@pytest.mark.parametrize("text", UNSURE)
def test_what_takes_more_than_a_line_to_know(text, tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(f"{ABOVE}{text}\n", encoding="utf-8")
    assert parse(["--config", str(path)]).run.output_dir
    assert settings_file.value(path, ["output_dir"]) is None


@pytest.mark.parametrize("text", ["", "output_dir:", "output_dir: null", "output_dir: ~", " output_dir: a"])
def test_no_value(text, tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(text, encoding="utf-8")
    assert settings_file.value(path, ["output_dir"]) is None


def test_a_list_of_files_is_none_that_could_be_looked_at(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("train_file: [a.jsonl, b.jsonl]\nvalidation_file:\n- c.jsonl\n", encoding="utf-8")
    for name in ("train_file", "validation_file"):
        assert run_folder.find_path(["--config", str(path)], [f"--{name}"]) is None


def test_a_flag_wins_and_a_file_that_cannot_be_read_says_nothing(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("output_dir: of-the-file\n", encoding="utf-8")
    assert run_folder.find_path(["--output_dir", "of-the-flag", "--config", str(path)], ["--output_dir"]) == (
        "of-the-flag"
    )
    path.write_bytes("output_dir: 糖尿病\n".encode("gbk"))
    assert run_folder.find(["--config", str(path)]) is None
    assert run_folder.find(["--config", str(tmp_path)]) is None
    assert run_folder.find(["--config", str(tmp_path / "missing")]) is None
    os.mkfifo(tmp_path / "pipe")  # as of --config <(…): what the launcher took the training would lack
    assert run_folder.find(["--config", str(tmp_path / "pipe")]) is None
