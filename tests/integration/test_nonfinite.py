"""NaN and infinite gradients: never applied, skipped on all ranks alike, and not for ever."""

import json

import pytest
from runs import REPOSITORY, launch

WORKER = REPOSITORY / "tests" / "integration" / "nonfinite_worker.py"


def run(toy_model, instruction_file, cache, ds_config, max_in_a_row):
    arguments = [toy_model, instruction_file, cache, REPOSITORY / "ds_configs" / ds_config, max_in_a_row]
    result = launch([str(item) for item in arguments], 2, "torchrun", script=WORKER)
    assert result.returncode == 0, result.stdout + result.stderr
    reports = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return sorted(reports, key=lambda report: report["rank"])


@pytest.mark.parametrize(
    ("ds_config", "dtype"), [("zero3.json", "torch.bfloat16"), ("zero3_cpu.json", "torch.float32")]
)
def test_a_bad_step_is_left_out_on_all_ranks(toy_model, instruction_file, tmp_path, ds_config, dtype):
    first, second = run(toy_model, instruction_file, tmp_path / "cache", ds_config, max_in_a_row=2)
    assert first["dtype"] == dtype
    assert first["applied"] == second["applied"] == [True, False, True, False, True]
    assert first["num_skipped"] == second["num_skipped"] == 2
    before, *after = first["digests"]
    changed = [new != old for old, new in zip([before, *after], after, strict=False)]
    assert changed == [True, False, True, False, True]


def test_too_many_in_a_row_end_the_run(toy_model, instruction_file, tmp_path):
    reports = run(toy_model, instruction_file, tmp_path / "cache", "zero3.json", max_in_a_row=1)
    for report in reports:
        assert report["applied"] == [True]
        assert "--learning_rate" in report["diverged"]
        assert "up to step 2" in report["diverged"]
