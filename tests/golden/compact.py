"""Makes tests/golden/tiny from the full reference numbers; see README.md beside it.

python tests/golden/compact.py ../shared/golden/tiny
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CASES = ("single", "batch_left_padded", "mask_token")
EVERY_NTH_LOGIT_ROW = 8


def compact(source: Path, target: Path) -> None:
    """Keep the weights once and the numbers that the tests compare; drop what follows from them."""
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(source.glob("pytorch_model-*.bin")):
        weights |= torch.load(shard, weights_only=True)
    kept = {
        name: tensor
        for name, tensor in weights.items()
        if name != "lm_head.weight" and not name.endswith("inv_freq")
    }
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})

    full, numbers = load_file(source / "golden.safetensors"), json.loads((source / "golden.json").read_text())
    names = list(numbers["single"]["grad_norms"])
    tensors = {}
    for case in CASES:
        for part in ("input_ids", "labels", "position_ids"):
            tensors[f"{case}.{part}"] = full[f"{case}.{part}"].to(torch.int16)
        tensors[f"{case}.final_hidden"] = full[f"{case}.final_hidden"]
        tensors[f"{case}.logits"] = full[f"{case}.logits"].flatten(0, 1)[::EVERY_NTH_LOGIT_ROW].contiguous()
        tensors[f"{case}.loss"] = full[f"{case}.loss"]
        tensors[f"{case}.lengths"] = torch.tensor(numbers[case]["lengths"], dtype=torch.int16)
        norms = [numbers[case]["grad_norms"][name] for name in names]
        tensors[f"{case}.grad_norms"] = torch.tensor(norms, dtype=torch.float32)
    save_file(tensors, target / "reference.safetensors")

    rest = {"parameters": names, "greedy": numbers["greedy"], "adamw20": numbers["adamw20"]}
    (target / "reference.json").write_text(json.dumps(rest, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    compact(Path(sys.argv[1]), Path(__file__).parent / "tiny")
