"""A toy ChatGLM and medical pairs for tests that start real training processes."""

import io
import json
import sys
from pathlib import Path

import pytest
from runs import REPOSITORY

from medsft import cli

NUM_EXAMPLES = 512


@pytest.fixture(scope="session")
def instruction_file(tmp_path_factory) -> Path:
    """512 medical pairs: the published ones where they are at hand, else built from the sample graph."""
    path = tmp_path_factory.mktemp("数据 集") / "pairs.jsonl"
    real = REPOSITORY.parent / "shared" / "data" / "med_chatglm_train.jsonl"
    if real.exists():
        with real.open(encoding="utf-8") as file:
            lines = [line for line, _ in zip(file, range(NUM_EXAMPLES), strict=False)]
        path.write_text("".join(lines), encoding="utf-8")
    else:
        from medsft.knowledge.build import build_pairs

        build_pairs([REPOSITORY / "medsft" / "knowledge" / "sample.jsonl"], path, seed=0)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:NUM_EXAMPLES]
        path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory, instruction_file) -> Path:
    """An untrained ChatGLM of a few 100,000 parameters in the released layout, fp32 weights."""
    from medsft.chatglm.init import write_random_model
    from medsft.chatglm.tokenizer_training import train_tokenizer

    records = [json.loads(line) for line in instruction_file.read_text(encoding="utf-8").splitlines()]
    folder = tmp_path_factory.mktemp("models")
    train_tokenizer((r["context"] + r["target"] for r in records), folder / "tokenizer", vocab_size=1500)
    shape = {"hidden_size": 64, "num_layers": 3, "num_attention_heads": 4, "inner_hidden_size": 256}
    write_random_model(folder / "toy 模型", folder / "tokenizer", overrides=shape, seed=1, dtype="float32")
    return folder / "toy 模型"


@pytest.fixture
def medsft(monkeypatch, capfd):
    """Calls the entry point in this process; gives exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medsft", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output, errors = capfd.readouterr()
        return int(caught.value.code or 0), output, errors

    return call


@pytest.fixture(scope="session")
def chat_model_dir(tmp_path_factory) -> Path:
    """A folder with a toy that answers `chat_toy.PAIRS` exactly."""
    from chat_toy import make_toy

    folder = tmp_path_factory.mktemp("聊 天")
    make_toy(folder)
    return folder
