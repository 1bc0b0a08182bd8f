"""What starts without torch and transformers, which take seconds, and that nothing is lost by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from medsft import registration

REPOSITORY = Path(__file__).resolve().parents[2]


def printed(code: str) -> str:
    """What a new Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_light_commands_import_neither_torch_nor_transformers(tmp_path):
    code = f"""
import sys
from typer.testing import CliRunner
from medsft.cli import app
for words in ("--help", "checkpoint list {tmp_path}", "plan", "plan --preset 1b --gpu cpu --json"):
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 0 or words.startswith("checkpoint"), result.output
import medsft.checkpoint.survey, medsft.cli.checkpoint_tables
print([name for name in ("torch", "transformers", "deepspeed", "datasets") if name in sys.modules])
"""
    assert printed(code) == "[]"


def test_the_auto_classes_know_chatglm_when_transformers_comes_later():
    """And what only a GPU needs is not imported on the way."""
    code = """
import sys
import medsft
from transformers import AutoConfig, AutoModel
sizes = dict(vocab_size=104, hidden_size=32, num_layers=1, num_attention_heads=2, inner_hidden_size=64)
config = AutoConfig.for_model("chatglm", **sizes, bos_token_id=98, eos_token_id=99, pad_token_id=3)
import medsft.chatglm.weights
print(type(AutoModel.from_config(config)).__module__, type(config) is medsft.chatglm.ChatGLMConfig,
      "cpm_kernels" in sys.modules)
"""
    assert printed(code) == "medsft.chatglm.modeling True False"


def test_chatglm_is_registered_at_once_where_transformers_is_there(monkeypatch):
    imported = []
    monkeypatch.setattr(registration.importlib, "import_module", imported.append)
    monkeypatch.setitem(sys.modules, "transformers", sys)
    finders = list(sys.meta_path)
    registration.register_with_transformers()
    assert imported == ["medsft.chatglm"] and sys.meta_path == finders
