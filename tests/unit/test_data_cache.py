"""The token cache: what its key depends on, who builds it, what a killed build leaves."""

import json
import os
import threading
import time
from pathlib import Path

import filelock
import pytest

from medsft.chatglm import ChatGLMTokenizer
from medsft.chatglm.tokenizer_training import train_tokenizer
from medsft.data import cache
from medsft.data.cache import load_or_build
from medsft.data.encode import encode_example
from medsft.data.records import Columns, read_files
from medsft.errors import UserError

TEXTS = ["患者发热、咳嗽三天，应当怎样治疗？", "多喝水，按时休息，必要时服用退热药。"]
RECORDS = [
    {"prompt": f"第{i}位患者发热，怎样治疗？", "response": f"休息{i}天。" * (i % 5 + 1)} for i in range(40)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> ChatGLMTokenizer:
    return train_tokenizer(TEXTS * 4, tmp_path_factory.mktemp("tokenizer"), 400)


@pytest.fixture
def data(tmp_path) -> Path:
    return write(tmp_path / "病 例.jsonl", RECORDS)


def write(path: Path, records: list, *broken: str) -> Path:
    path.write_text(
        "".join(json.dumps(record) + "\n" for record in records) + "".join(broken), encoding="utf-8"
    )
    return path


def load(files, tokenizer, folder: Path, **changes):
    if isinstance(files, Path):
        files = [files]
    settings = {"max_source_length": 64, "max_target_length": 64} | changes
    return load_or_build(files, tokenizer, folder, **settings)


def check_same(one, other) -> None:
    """Two data sets hold the same, in the same order."""
    assert (one.fingerprint, one.summary) == (other.fingerprint, other.summary)
    assert len(one) == len(other)
    for index in range(len(one)):
        assert one[index].input_ids.tolist() == other[index].input_ids.tolist()
        assert one[index].context_length == other[index].context_length
        assert one.source(index) == other.source(index)


def entries(folder: Path) -> set[str]:
    """Names in the cache folder, without the keys they begin with."""
    return {path.name[64:].split("-")[0] for path in folder.iterdir()}


def test_rows_are_what_encoding_gives(data, tokenizer, tmp_path):
    dataset = load(data, tokenizer, tmp_path / "cache", max_source_length=12, max_target_length=24)
    examples = read_files([data]).examples
    encoded = [encode_example(example, tokenizer, 12, 24, "chatglm") for example in examples]
    assert [(row.input_ids.tolist(), row.context_length) for row in map(dataset.__getitem__, range(40))] == [
        (item.input_ids, item.context_length) for item in encoded
    ]
    assert dataset[7].input_ids.dtype == "int32"
    assert dataset.lengths.tolist() == [len(item.input_ids) for item in encoded]
    assert dataset.num_targets.tolist() == [item.num_targets for item in encoded]
    assert [dataset.source(index) for index in range(40)] == [example.source for example in examples]
    with pytest.raises(IndexError):
        dataset[40]

    summary = dataset.summary
    assert summary.template == "chatglm"
    assert (summary.num_examples, summary.num_bad, summary.num_records) == (40, 0, 40)
    assert summary.num_sources_cut == sum(item.source_cut for item in encoded) > 0
    assert summary.num_targets_cut == sum(item.target_cut for item in encoded) > 0
    assert summary.num_tokens == sum(dataset.lengths)
    assert summary.num_targets == sum(dataset.num_targets)
    ordered = sorted(dataset.lengths)
    assert summary.length_quantiles == {
        "p50": ordered[19],
        "p90": ordered[35],
        "p99": ordered[38],
        "max": ordered[39],
    }


def test_chunks_do_not_show(data, tokenizer, tmp_path, monkeypatch):
    whole = load(data, tokenizer, tmp_path / "whole")
    monkeypatch.setattr("medsft.data.build.CHUNK_EXAMPLES", 7)
    parts = load(data, tokenizer, tmp_path / "parts")
    check_same(parts, whole)


def test_second_load_builds_nothing(data, tokenizer, tmp_path):
    progress: list[tuple[int, int]] = []
    first = load(data, tokenizer, tmp_path / "cache", progress=lambda *done: progress.append(done))
    assert progress[-1] == (data.stat().st_size, data.stat().st_size)
    progress.clear()
    second = load(data, tokenizer, tmp_path / "cache", progress=lambda *done: progress.append(done))
    assert not progress
    assert (first.fingerprint, first.summary) == (second.fingerprint, second.summary)
    assert entries(tmp_path / "cache") == {"", ".lock"}


def num_built(folder: Path) -> int:
    return sum(path.is_dir() for path in folder.iterdir())


def test_what_the_key_depends_on(data, tokenizer, tmp_path):
    folder = tmp_path / "cache"
    other = write(tmp_path / "b.jsonl", RECORDS[:3])
    load(data, tokenizer, folder)
    vocabulary = train_tokenizer([*TEXTS * 4, "头痛"], tmp_path / "tokenizer", 410)
    for number, (files, used, changes) in enumerate(
        [
            ([data, other], tokenizer, {}),
            ([other, data], tokenizer, {}),
            (data, tokenizer, {"columns": Columns("prompt", "response")}),
            (data, tokenizer, {"template": "none"}),
            (data, tokenizer, {"max_source_length": 30}),
            (data, tokenizer, {"max_target_length": 30}),
            (data, tokenizer, {"max_samples": 5}),
            (data, vocabulary, {}),
        ],
        start=2,
    ):
        load(files, used, folder, **changes)
        assert num_built(folder) == number, (files, changes)
    data.write_text(data.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    load(data, tokenizer, folder)
    assert num_built(folder) == 10


def test_what_the_key_does_not_depend_on(data, tokenizer, tmp_path):
    folder = tmp_path / "cache"
    broken = write(tmp_path / "broken.jsonl", RECORDS, "{\n")
    before = load([data, broken], tokenizer, folder, max_bad_share=0.5)
    moved = data.rename(tmp_path / "renamed.jsonl")
    broken = broken.rename(tmp_path / "renamed.txt")
    os.utime(moved, (1, 1))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load(
        [moved, broken],
        ChatGLMTokenizer.from_pretrained(tmp_path / "saved"),
        folder,
        max_bad_share=0.6,
        num_workers=2,
    )
    assert num_built(folder) == 1
    assert again.fingerprint == before.fingerprint
    # What is reported carries the names of today.
    assert again.source(0) == f"{moved}:1"
    assert again.source(40) == f"{broken}:1"
    assert again.summary.first_bad[0].source == f"{broken}:41"


def test_fingerprint_is_of_the_tokens(data, tokenizer, tmp_path):
    folder = tmp_path / "cache"
    array = tmp_path / "a.json"
    array.write_text(json.dumps(RECORDS), encoding="utf-8")
    fingerprint = load(data, tokenizer, folder).fingerprint
    assert load(array, tokenizer, folder).fingerprint == fingerprint
    assert load(data, tokenizer, folder, max_source_length=65).fingerprint == fingerprint
    turned = write(tmp_path / "turned.jsonl", RECORDS[::-1])
    assert load(turned, tokenizer, folder).fingerprint != fingerprint
    # The same tokens, cut into context and target elsewhere, are other data.
    assert load(data, tokenizer, folder, max_samples=39).fingerprint != fingerprint


def test_template_is_detected_from_the_data(tokenizer, tmp_path):
    records = [
        {"context": f"问题：{record['prompt']}\n回答: ", "target": record["response"]} for record in RECORDS
    ]
    dataset = load(write(tmp_path / "med.jsonl", records), tokenizer, tmp_path / "cache")
    assert dataset.summary.template == "med-chatglm"
    records[3]["context"] = "头痛"
    dataset = load(write(tmp_path / "mixed.jsonl", records), tokenizer, tmp_path / "cache")
    assert dataset.summary.template == "chatglm"


def test_bad_records_are_counted_and_limited(tokenizer, tmp_path):
    folder = tmp_path / "cache"
    invisible = {"prompt": "a", "response": "\u200b"}
    path = write(tmp_path / "a.jsonl", [*RECORDS, invisible, {"prompt": "a"}], "{\n", "[]\n", "{}\n")
    for _ in range(2):  # when it is built, and from the cache
        with pytest.raises(UserError) as caught:
            load(path, tokenizer, folder, max_bad_share=0.1)
        message = str(caught.value)
        assert "5 of 45 records (11.1%)" in message and "--max_bad_share 0.1" in message
        assert "2 × missing columns, 1 × empty answer, 1 × broken JSON, 1 × not a JSON object" in message
        assert f"First: {path}:41: empty answer" in message and f"{path}:45: missing columns" in message
    dataset = load(path, tokenizer, folder, max_bad_share=0.2)
    assert len(dataset) == 40
    assert "left out: 2 × missing columns" in dataset.summary.describe()
    assert num_built(folder) == 1


def test_only_the_first_bad_records_are_listed(tokenizer, tmp_path):
    path = write(tmp_path / "a.jsonl", RECORDS, *["{\n"] * 100)
    summary = load(path, tokenizer, tmp_path / "cache", max_bad_share=1).summary
    assert summary.num_bad == 100
    assert [bad.source for bad in summary.first_bad] == [f"{path}:{line}" for line in range(41, 51)]


def test_no_example_left_is_refused(tokenizer, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"a": 1}])
    with pytest.raises(UserError, match=r"data set is empty.*a\.jsonl:1: missing columns"):
        load(path, tokenizer, tmp_path / "cache", max_bad_share=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_bad_share": 1.5}, "--max_bad_share is 1.5"),
        ({"max_samples": 0}, "is 0; it must be at least 1"),
        ({"template": "alpaca"}, "'alpaca' is not known"),
        ({"max_source_length": 1}, "max_source_length is 1"),
    ],
)
def test_wrong_settings_are_refused(data, tokenizer, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load(data, tokenizer, tmp_path / "cache", **changes)


def test_a_folder_that_cannot_be_used_is_named(data, tokenizer):
    with pytest.raises(UserError, match=r"token cache in .*jsonl: .*--data_cache_dir"):
        load(data, tokenizer, data)


def test_data_that_changes_while_it_is_read(data, tokenizer, tmp_path):
    def append(*_):
        write(data, RECORDS * 2)

    with pytest.raises(UserError, match="changed while it was read"):
        load(data, tokenizer, tmp_path / "cache", progress=append)
    assert entries(tmp_path / "cache") == {".lock"}


@pytest.mark.parametrize("damage", ["short tokens", "no tokens", "short manifest", "no manifest"])
def test_a_damaged_cache_is_built_anew(data, tokenizer, tmp_path, damage):
    folder = tmp_path / "cache"
    fingerprint = load(data, tokenizer, folder).fingerprint
    name = "tokens.arrow" if "tokens" in damage else "manifest.json"
    (path,) = folder.glob(f"*/{name}")
    if damage.startswith("no"):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100])
    dataset = load(data, tokenizer, folder)
    assert dataset.fingerprint == fingerprint and len(dataset) == 40
    assert dataset[39].input_ids[-1] == tokenizer.eop_token_id


def test_other_builders_folders_are_left_alone(data, tokenizer, tmp_path):
    folder = tmp_path / "cache"
    load(data, tokenizer, folder)
    (final,) = (path for path in folder.iterdir() if path.is_dir())
    final.rename(tmp_path / "away")
    own_host = cache.socket.gethostname()
    alive, elsewhere = (
        f"{final}.building-{name}-1a" for name in (f"{own_host}-{os.getpid()}", "other-host-1")
    )
    for name in (alive, elsewhere):
        Path(name).mkdir()
    old = Path(f"{final}.building-other-host-2-1a")
    old.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    load(data, tokenizer, folder)
    assert Path(alive).is_dir() and Path(elsewhere).is_dir() and not old.exists()


def test_the_rename_decides_where_locks_do_not(tmp_path):
    final = tmp_path / ("0" * 64)
    meeting = threading.Barrier(2)

    def write_folder(folder: Path) -> None:
        (folder / "tokens.arrow").write_bytes(b"tokens")
        (folder / "manifest.json").write_text('{"arrow_bytes": 6}')
        meeting.wait()  # both are complete before either gets the name

    outcomes: list[dict] = []
    builders = [
        threading.Thread(target=lambda: outcomes.append(cache._build_and_commit(final, write_folder)))
        for _ in range(2)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert outcomes == [{"arrow_bytes": 6}] * 2
    assert [path.name for path in tmp_path.iterdir()] == [final.name]


def test_a_lock_that_cannot_be_had_is_no_obstacle(data, tokenizer, tmp_path, caplog):
    folder = tmp_path / "cache"
    load(data, tokenizer, folder)
    (lock,) = folder.glob("*.lock")
    (final,) = (path for path in folder.iterdir() if path.is_dir())
    final.rename(tmp_path / "away")
    lock.unlink()
    lock.mkdir()  # a folder cannot be locked
    assert len(load(data, tokenizer, folder)) == 40
    assert "several processes may tokenise" in caplog.text


def test_a_stalled_builder_is_not_waited_for(data, tokenizer, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "cache"
    load(data, tokenizer, folder)
    (lock,) = folder.glob("*.lock")
    (final,) = (path for path in folder.iterdir() if path.is_dir())
    final.rename(tmp_path / "away")
    monkeypatch.setattr(cache, "_POLL_S", 0.05)
    monkeypatch.setattr(cache, "_STALL_S", 0.2)
    with filelock.FileLock(lock):
        assert len(load(data, tokenizer, folder)) == 40
    assert "has written nothing for" in caplog.text
