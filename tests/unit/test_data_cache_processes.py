"""The token cache under several processes, real ones."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from medsft.chatglm import ChatGLMTokenizer
from medsft.chatglm.tokenizer_training import train_tokenizer
from medsft.data.cache import load_or_build

RECORDS = [{"prompt": f"第{i}位患者发热，怎样治疗？", "response": f"休息{i}天。"} for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> ChatGLMTokenizer:
    texts = ["患者发热、咳嗽三天，应当怎样治疗？", "多喝水，按时休息。"]
    return train_tokenizer(texts * 4, tmp_path_factory.mktemp("tokenizer"), 400)


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "病 例.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return path


def load(data: Path, tokenizer, folder: Path, **changes):
    return load_or_build([data], tokenizer, folder, max_source_length=64, max_target_length=64, **changes)


def entries(folder: Path) -> set[str]:
    """Names in the cache folder, without the keys they begin with."""
    return {path.name[64:].split("-")[0] for path in folder.iterdir()}


def ids(dataset) -> list[list[int]]:
    return [dataset[index].input_ids.tolist() for index in range(len(dataset))]


def test_encoding_in_processes_keeps_the_order(data, tokenizer, tmp_path, monkeypatch):
    here = load(data, tokenizer, tmp_path / "here")
    monkeypatch.setattr("medsft.data.build.CHUNK_EXAMPLES", 7)
    there = load(data, tokenizer, tmp_path / "there", num_workers=2)
    assert (there.fingerprint, there.summary) == (here.fingerprint, here.summary)
    assert ids(there) == ids(here)


def build_slowly(number, data, tokenizer, folder, started, results):
    """One of several ranks: reports whether it was the one that built."""
    built = []

    def progress(*_):
        built.append(number)
        time.sleep(0.5)

    started.wait()
    dataset = load(data, tokenizer, folder, progress=progress)
    results.put((number, len(built), dataset.fingerprint, ids(dataset)))


def build_and_hang(data, tokenizer, folder, hangs):
    def progress(*_):
        hangs.set()
        time.sleep(600)

    load(data, tokenizer, folder, progress=progress)


@pytest.fixture(scope="module")
def processes():
    """Real processes that begin with the slow imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["medsft.data.cache", "datasets"])
    return context


def test_of_several_processes_one_builds(data, tokenizer, tmp_path, processes):
    started, results = processes.Barrier(4), processes.Queue()
    arguments = (data, tokenizer, tmp_path / "cache", started, results)
    ranks = [processes.Process(target=build_slowly, args=(number, *arguments)) for number in range(4)]
    for rank in ranks:
        rank.start()
    outcomes = [results.get(timeout=240) for _ in ranks]
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    assert sorted(number for number, *_ in outcomes) == [0, 1, 2, 3]
    assert sum(num_progress > 0 for _, num_progress, *_ in outcomes) == 1
    assert all(outcome[2:] == outcomes[0][2:] for outcome in outcomes)
    assert entries(tmp_path / "cache") == {"", ".lock"}


def test_a_killed_build_is_not_believed_and_cleared_away(data, tokenizer, tmp_path, processes):
    hangs = processes.Event()
    victim = processes.Process(target=build_and_hang, args=(data, tokenizer, tmp_path / "cache", hangs))
    victim.start()
    assert hangs.wait(timeout=240)
    assert entries(tmp_path / "cache") == {".lock", ".building"}
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert len(load(data, tokenizer, tmp_path / "cache")) == 40
    assert entries(tmp_path / "cache") == {"", ".lock"}
