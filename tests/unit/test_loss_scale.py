"""fp16's falling loss scale is told from divergence, with DeepSpeed's own scalers."""

import json
import subprocess
import sys

from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from medsft.engine.state import restore_scaler, scaler_state
from medsft.engine.step import is_settling

# In a process of its own: DeepSpeed's scaler asks for its rank when it reports an overflow.
OVERFLOWS = """
import json, os
from medsft.engine.distributed import complete_environment, start
from medsft.engine.step import is_settling
complete_environment(os.environ)
start(timeout_min=1)
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
scaler = DynamicLossScaler(
    init_scale=16, scale_window=1000, min_scale=1, delayed_shift=1, consecutive_hysteresis=False,
    raise_error_at_min_scale=False,
)
seen = []
for _ in range(7):
    seen.append(is_settling(scaler))
    scaler.update_scale(overflow=True)
print(json.dumps(seen), flush=True)
os._exit(0)
"""


def test_a_scale_settles_until_it_is_at_its_least():
    done = subprocess.run([sys.executable, "-c", OVERFLOWS], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [True] * 4 + [False] * 3


def test_a_fixed_scale_never_settles():
    assert not is_settling(LossScaler(scale=128))


def dynamic_scaler():
    """DeepSpeed's, with a scale that grows after three steps without overflow."""
    return DynamicLossScaler(
        init_scale=16, scale_window=3, min_scale=1, delayed_shift=1, consecutive_hysteresis=False
    )


def test_a_restored_scale_grows_at_the_same_step():
    uninterrupted, resumed = dynamic_scaler(), dynamic_scaler()
    for _ in range(4):
        uninterrupted.update_scale(overflow=False)
    restore_scaler(resumed, json.loads(json.dumps(scaler_state(uninterrupted))))
    scales = []
    for _ in range(7):
        for scaler in (uninterrupted, resumed):
            scaler.update_scale(overflow=False)
        scales.append((uninterrupted.cur_scale, resumed.cur_scale))
    assert all(one == other for one, other in scales)
    assert len({one for one, _ in scales}) == 3


def test_a_scale_does_not_cross_precisions():
    fixed, dynamic = LossScaler(scale=128), dynamic_scaler()
    assert scaler_state(fixed) == {}
    restore_scaler(dynamic, scaler_state(fixed))
    restore_scaler(fixed, scaler_state(dynamic))
    assert (dynamic.cur_scale, fixed.cur_scale) == (16, 128)
