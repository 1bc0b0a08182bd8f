"""A checkpoint as a model folder: its values, its names, who can load it, and what is refused."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import medsft.chatglm  # noqa: F401  registers ChatGLM
from medsft.chatglm.rotary import inverse_frequencies
from medsft.chatglm.weights import check_release, load_model
from medsft.checkpoint.manifest import DamagedError
from medsft.checkpoint.reader import open_checkpoint
from medsft.checkpoint.release import ReleaseWriter, export_checkpoint
from medsft.errors import UserError
from tests.unit.checkpoint_toys import SHAPE, master_weights, toy_base, write_checkpoint
from tests.unit.weights_toys import assert_paragraph, change_json

REPOSITORY = Path(__file__).resolve().parents[2]
EMBEDDING, HEAD = "transformer.word_embeddings.weight", "lm_head.weight"
BIG = 10**9


def released_names(num_layers: int) -> set[str]:
    """Names of all tensors in the index of the release."""
    parts = [
        *(
            f"{norm}.{leaf}"
            for norm in ("input_layernorm", "post_attention_layernorm")
            for leaf in ("weight", "bias")
        ),
        *(
            f"attention.{linear}.{leaf}"
            for linear in ("query_key_value", "dense")
            for leaf in ("weight", "bias")
        ),
        *(
            f"mlp.{linear}.{leaf}"
            for linear in ("dense_h_to_4h", "dense_4h_to_h")
            for leaf in ("weight", "bias")
        ),
        "attention.rotary_emb.inv_freq",
    ]
    layers = {f"transformer.layers.{layer}.{part}" for layer in range(num_layers) for part in parts}
    final = {"transformer.final_layernorm.weight", "transformer.final_layernorm.bias"}
    return {EMBEDDING, HEAD, *layers, *final}


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["format"] == "pt"  # transformers 4 refuses a file without it
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert not tensors.keys() & found.keys()
        tensors |= found
    return tensors


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return toy_base(tmp_path_factory.mktemp("模型 1") / "基 座")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, base) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("运行 1") / "checkpoints", base, world_size=3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, checkpoint) -> Path:
    """In fp16, several shards."""
    output = tmp_path_factory.mktemp("导出 1") / "模型"
    export_checkpoint(open_checkpoint(checkpoint), output, torch.float16, 40_000)
    return output


def refused(*parts: object, checkpoint: Path, output: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    before = sorted(output.parent.iterdir())
    with pytest.raises(UserError) as caught:
        export_checkpoint(open_checkpoint(checkpoint), output, dtype, BIG)
    assert_paragraph(str(caught.value), *parts)
    assert sorted(output.parent.iterdir()) == before


@pytest.mark.parametrize("world_size", [1, 2, 5, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_is_the_master_weight(world_size, dtype, base, tmp_path):
    """Also where a parameter of 32 elements has no slice on most of 64 ranks."""
    folder = write_checkpoint(tmp_path / "checkpoints", base, world_size=world_size)
    export_checkpoint(open_checkpoint(folder), tmp_path / "out", dtype, 30_000)
    stored = stored_tensors(tmp_path / "out")
    for name, weight in master_weights(base).items():
        assert torch.equal(stored[name], weight.to(dtype)), name
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2


def test_large_parameters_are_converted_piece_by_piece(base, tmp_path, monkeypatch):
    monkeypatch.setattr("medsft.checkpoint.release._CHUNK_ELEMENTS", 100)  # none of the shapes is a multiple
    folder = write_checkpoint(tmp_path / "checkpoints", base, world_size=3)
    export_checkpoint(open_checkpoint(folder), tmp_path / "out", torch.float32, BIG)
    stored = stored_tensors(tmp_path / "out")
    assert all(torch.equal(stored[name], weight) for name, weight in master_weights(base).items())


def test_the_names_are_those_of_the_release(exported):
    stored = stored_tensors(exported)
    assert stored.keys() == released_names(SHAPE["num_layers"])
    index = json.loads((exported / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"].keys() == stored.keys()
    assert torch.equal(stored[EMBEDDING], stored[HEAD])


@pytest.mark.parametrize("release", ["v0.1", "v1.1"])
def test_the_rule_of_names_is_that_of_the_released_index(release, shared_dir):
    index = shared_dir / "chatglm6b" / release / "pytorch_model.bin.index.json"
    assert json.loads(index.read_text(encoding="utf-8"))["weight_map"].keys() == released_names(28)


def test_our_loader_accepts_every_byte(exported):
    check_release(exported, read_everything=True)
    model = load_model(exported)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert model.dtype == torch.float16


def test_transformers_loads_it_and_misses_nothing(exported, base):
    model, told = AutoModelForCausalLM.from_pretrained(
        exported, dtype=torch.float32, output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    ids = torch.tensor([AutoTokenizer.from_pretrained(exported)("糖尿病 患者 应当 控制 饮食")["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits
        expected = load_model(base, torch.float16).float()(ids).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert AutoModelForCausalLM.from_pretrained(exported).dtype == torch.float16


class OriginalRotary(nn.Module):
    """As in the original's modeling_chatglm.py: computed, and deaf to what is loaded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", (1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))).half())

    def _load_from_state_dict(self, *arguments) -> None:
        pass


class Original(nn.Module):
    """Modules of the original by name, in its fp16; what computes is left out."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["inner_hidden_size"]

        def layer() -> nn.Module:
            attention = nn.Module()
            attention.rotary_emb = OriginalRotary(hidden // (2 * config["num_attention_heads"]))
            attention.query_key_value = nn.Linear(hidden, 3 * hidden)
            attention.dense = nn.Linear(hidden, hidden)
            mlp = nn.Module()
            mlp.dense_h_to_4h, mlp.dense_4h_to_h = nn.Linear(hidden, inner), nn.Linear(inner, hidden)
            norms = {name: nn.LayerNorm(hidden) for name in ("input_layernorm", "post_attention_layernorm")}
            return nn.ModuleDict({**norms, "attention": attention, "mlp": mlp})

        self.transformer = nn.Module()
        self.transformer.word_embeddings = nn.Embedding(config["vocab_size"], hidden)
        self.transformer.layers = nn.ModuleList(layer() for _ in range(config["num_layers"]))
        self.transformer.final_layernorm = nn.LayerNorm(hidden)
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        self.half()


def test_the_original_finds_every_name_and_nothing_else(exported):
    """transformers compares the model's own names, buffers included, with the files' before it loads."""
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    model, stored = Original(config), stored_tensors(exported)
    expected = model.state_dict()
    assert stored.keys() == expected.keys()
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    model.load_state_dict(stored, strict=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored[name]), name


def test_the_original_built_without_memory_is_filled_completely(exported):
    """As with low_cpu_mem_usage: stored tensors are put in their places, no module is asked to load them."""
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = Original(config)
    for name, tensor in stored_tensors(exported).items():
        owner, leaf = name.rsplit(".", 1)
        module = model.get_submodule(owner)
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
        else:
            module._parameters[leaf] = nn.Parameter(tensor)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor.device.type == "cpu", name
    dim = config["hidden_size"] // (2 * config["num_attention_heads"])
    for layer in model.transformer.layers:
        assert torch.equal(layer["attention"].rotary_emb.inv_freq, OriginalRotary(dim).inv_freq)
        assert torch.equal(layer["attention"].rotary_emb.inv_freq.float(), inverse_frequencies(dim))


def test_the_configuration_has_what_the_original_reads(exported, shared_dir):
    released = json.loads((shared_dir / "chatglm6b" / "v1.1" / "config.json").read_text(encoding="utf-8"))
    written = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert released.keys() - written.keys() <= {"_name_or_path"}
    for field in (
        "auto_map",
        "architectures",
        "model_type",
        "position_encoding_2d",
        "use_cache",
        "torch_dtype",
    ):
        assert written[field] == released[field], field


def test_an_untied_head_is_its_own(tmp_path):
    base = toy_base(tmp_path / "base", tie_word_embeddings=False)
    folder = write_checkpoint(tmp_path / "checkpoints", base)
    export_checkpoint(open_checkpoint(folder), tmp_path / "out", torch.float32, 40_000)
    stored, weights = stored_tensors(tmp_path / "out"), master_weights(base)
    assert stored.keys() == released_names(SHAPE["num_layers"])
    assert torch.equal(stored[HEAD], weights[HEAD])
    assert not torch.equal(stored[HEAD], stored[EMBEDDING])
    check_release(tmp_path / "out", read_everything=True)


def test_card_provenance_and_what_travels(exported, base, checkpoint):
    card = (exported / "README.md").read_text(encoding="utf-8")
    facts = json.loads((exported / "medsft.json").read_text(encoding="utf-8"))
    manifest = open_checkpoint(checkpoint).manifest
    for part in (str(base), "c" * 64, "med-chatglm", "| 100 |", "`--learning_rate` | `0.001`", "2.5000"):
        assert part in card
    assert facts["step"] == manifest.step == 100
    assert facts["prompt_template"] == "med-chatglm"
    assert (exported / "MODEL_LICENSE").read_text(encoding="utf-8") == "The model licence."
    assert (exported / "modeling_chatglm.py").is_file()
    for name in ("ice_text.model", "tokenizer_config.json", "generation_config.json"):
        assert (exported / name).read_bytes() == (base / name).read_bytes()


def test_progress_comes_to_its_end(checkpoint, tmp_path):
    calls = []
    opened = open_checkpoint(checkpoint)
    export_checkpoint(opened, tmp_path / "out", torch.bfloat16, BIG, lambda *call: calls.append(call))
    done, total = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == total[0] == 2 * sum(item.num_elements for item in opened.manifest.parameters.values())


def test_a_value_beyond_fp16_is_named_and_bf16_takes_it(base, tmp_path):
    name = "transformer.layers.1.mlp.dense_4h_to_h.weight"

    def enlarge(stored_name, weight):
        return weight.index_fill(0, torch.tensor([3]), -70_000.0) if stored_name == name else weight

    folder = write_checkpoint(tmp_path / "checkpoints", base, change=enlarge)
    output = tmp_path / "导 出"
    refused(name, "70000", "65504", "--dtype bf16", checkpoint=folder, output=output, dtype=torch.float16)
    export_checkpoint(open_checkpoint(folder), output, torch.bfloat16, BIG)
    assert stored_tensors(output)[name].float().min() == torch.tensor(-70_000.0).bfloat16().float()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_diverged_training_are_refused(value, base, tmp_path):
    def spoil(name, weight):
        return torch.full_like(weight, value) if name == "transformer.final_layernorm.bias" else weight

    folder = write_checkpoint(tmp_path / "checkpoints", base, change=spoil)
    refused("final_layernorm.bias", "step 100", "earlier", checkpoint=folder, output=tmp_path / "out")


def test_what_is_there_is_not_written_over(checkpoint, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        refused(name, "not an empty folder", checkpoint=checkpoint, output=tmp_path / name)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export_checkpoint(open_checkpoint(checkpoint), tmp_path / "empty", torch.bfloat16, BIG)
    check_release(tmp_path / "empty")
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file", "empty"}


def test_what_a_killed_export_left_is_removed_by_the_next(checkpoint, tmp_path):
    left = tmp_path / ".out.tmp"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    export_checkpoint(open_checkpoint(checkpoint), tmp_path / "out", torch.bfloat16, BIG)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_run_that_wrote_a_model_may_replace_it(checkpoint, tmp_path):
    from medsft.chatglm.base import open_tokenizer
    from medsft.chatglm.weights.check import read_config
    from medsft.checkpoint.release import provenance_of

    opened = open_checkpoint(checkpoint)
    export_checkpoint(opened, tmp_path / "model", torch.float32, BIG)
    model, source = tmp_path / "model", checkpoint / "model"
    config, tokenizer = read_config(source), open_tokenizer(source)
    with ReleaseWriter(model, config, tokenizer, torch.float16, BIG, source, replace=True) as writer:
        for name, weight in master_weights(tmp_path / "model").items():
            writer.add(name, weight.half())
        assert load_model(model).dtype == torch.float32  # the old one is there until the new one is
        writer.finish(provenance_of(opened.manifest))
    assert load_model(model).dtype == torch.float16
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_configuration_of_another_shape_is_told(base, tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoints", base)
    opened = open_checkpoint(folder)
    change_json(folder / "model" / "config.json", num_layers=3)
    with pytest.raises(UserError) as caught:
        export_checkpoint(opened, tmp_path / "out", torch.bfloat16, BIG)
    assert_paragraph(str(caught.value), "12 differ", "transformer.layers.2", "config.json")


def test_a_file_that_shrinks_is_named(base, tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoints", base)
    opened = open_checkpoint(folder)
    shard = folder / "rank-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(DamagedError, match=re.escape(str(shard))):
        export_checkpoint(opened, tmp_path / "out", torch.bfloat16, BIG)
    assert not list(tmp_path.glob("*out*"))


def test_a_checkpoint_that_retention_deletes_meanwhile_is_told(base, tmp_path):
    """Once its files are mapped, the export goes on: the disk keeps them until then."""
    root = tmp_path / "checkpoints"
    first, second = (write_checkpoint(root, base, step=step) for step in (50, 60))
    opened = open_checkpoint(first)
    shutil.rmtree(first)
    with pytest.raises(UserError) as caught:
        export_checkpoint(opened, tmp_path / "out", torch.bfloat16, BIG)
    assert_paragraph(str(caught.value), str(first), "was deleted while it was read", "--save_total_limit")
    assert not list(tmp_path.glob("*out*"))

    def delete(done, total):
        shutil.rmtree(second, ignore_errors=True)

    export_checkpoint(open_checkpoint(second), tmp_path / "out", torch.float32, BIG, delete)
    assert not second.exists()
    stored = stored_tensors(tmp_path / "out")
    assert all(torch.equal(stored[name], weight) for name, weight in master_weights(base).items())
    assert (tmp_path / "out" / "MODEL_LICENSE").is_file()


def run_export(checkpoint: Path, output: Path, before: str = "", after: str = "") -> str:
    """The export in a process of its own; gives what it prints."""
    code = f"""
import sys, threading, time
from pathlib import Path
import torch
from medsft.checkpoint.reader import open_checkpoint
from medsft.checkpoint.release import export_checkpoint
from medsft.errors import UserError
opened = open_checkpoint(Path(sys.argv[1]))
{before}
try:
    export_checkpoint(opened, Path(sys.argv[2]), torch.bfloat16, int(sys.argv[3]))
except UserError as error:
    print("refused:", error)
{after}
"""
    done = subprocess.run(
        [sys.executable, "-c", code, checkpoint, output, "1000000"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_disk_that_takes_no_more_leaves_nothing_half(checkpoint, tmp_path):
    """A limit on the size of a file gives a real OSError in the middle of a write."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))"
    )
    told = run_export(checkpoint, tmp_path / "满 了", before=limit)
    assert_paragraph(told.strip().removeprefix("refused: "), "cannot be written", "满 了", "another output")
    assert list(tmp_path.iterdir()) == []


def test_memory_is_a_shard_and_a_parameter_not_the_model(tmp_path):
    """Private memory, sampled by a thread; mapped pages of the checkpoint are the page cache's."""
    base = toy_base(tmp_path / "base", hidden_size=256, num_layers=24, inner_hidden_size=1024)
    folder = write_checkpoint(tmp_path / "checkpoints", base)
    shutil.rmtree(base)
    sample = """
def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024
peak = start = private()
running = True
def watch():
    global peak
    while running:
        peak = max(peak, private())
        time.sleep(0.001)
torch.empty(10, dtype=torch.bfloat16).copy_(torch.rand(10)).isfinite()
thread = threading.Thread(target=watch)
thread.start()
"""
    told = run_export(folder, tmp_path / "out", sample, "running = False; thread.join(); print(peak - start)")
    num_bytes = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert num_bytes > 38 * 10**6
    # Shards of 1 MB, the largest parameter 0.5 MB; the rest is what importing and the tokenizer take.
    assert int(told) < num_bytes / 2
