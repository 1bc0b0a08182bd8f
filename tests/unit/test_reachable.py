"""DeepSpeed configurations whose state no checkpoint could hold are refused before the training."""

import copy
import json
from pathlib import Path

import pytest

from medsft.engine.state import check_reachable
from medsft.errors import UserError

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_that_comes_along_is_within_reach(path):
    check_reachable(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"offload_optimizer": {"device": "cpu", "ratio": 0.5}}, "offload_optimizer.ratio is 0.5"),
        ({"offload_optimizer": {"device": "nvme", "pipeline_read": True}}, "pipeline_read is true"),
        ({"offload_optimizer": {"device": "cpu", "super_offload": True}}, "super_offload is true"),
        ({"zero_quantized_weights": True}, "zero_quantized_weights is set"),
        ({"mics_shard_size": 4}, "mics_shard_size is set"),
        ({"zenflow": {"topk_ratio": 0.1}}, "zenflow is set"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_no_checkpoint_can_reach_is_said(change, said):
    config = {"zero_optimization": {"stage": 3, **copy.deepcopy(change)}}
    with pytest.raises(UserError, match=said):
        check_reachable(config)


def test_values_that_change_nothing_are_let_through():
    check_reachable(
        {"zero_optimization": {"stage": 3, "zero_quantized_weights": False, "mics_shard_size": -1}}
    )
