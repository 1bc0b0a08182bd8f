"""fp16's falling loss scale is told from divergence, with DeepSpeed's own scalers."""

from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from medsft.engine.step import is_settling


def test_a_scale_settles_until_it_is_at_its_least():
    scaler = DynamicLossScaler(
        init_scale=2**4,
        scale_window=1000,
        min_scale=1,
        delayed_shift=1,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=False,
    )
    seen = []
    for _ in range(7):
        seen.append(is_settling(scaler))
        scaler.update_scale(overflow=True)
    assert seen == [True] * 4 + [False] * 3


def test_a_fixed_scale_never_settles():
    assert not is_settling(LossScaler(scale=128))
