"""The short fault campaign, and whether it would find a fault at all."""

from dataclasses import replace

import pytest
from campaign import Campaign, state_digest
from matrix import MATRIX
from tally import BrokenPromise, Tally

from medsft.checkpoint.manifest import read_manifest, write_manifest


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("faults"), print)


SHORT = [row for row in MATRIX if row.in_short]


@pytest.mark.parametrize(
    "row",
    [SHORT[0], *(pytest.param(row, marks=pytest.mark.slow) for row in SHORT[1:])],
    ids=lambda row: f"row-{row.number}",
)
def test_the_promise_is_kept(row, campaign):
    tally = Tally(print)
    row.run(campaign, tally, True)
    assert tally.injections and tally.num_checks > tally.injections
    assert tally.loads and not tally.bad_loads


def test_a_checkpoint_of_another_state_is_a_bad_load(campaign):
    """Every file as its manifest says, but not what the training was at that step."""
    run = campaign.killed_run("wrong state")
    good, other = (run / "checkpoints" / f"step-{step:08}" for step in (12, 8))
    digest = state_digest(good)
    for path in good.glob("rank-*"):
        path.write_bytes((other / path.name).read_bytes())
    manifest, files = read_manifest(good), dict(read_manifest(other).files)
    write_manifest(good, replace(manifest, files=files))
    assert state_digest(good) != digest
    tally = Tally()
    with pytest.raises(BrokenPromise, match="bad load"):
        campaign.check_checkpoints(tally, run)
    assert (tally.loads, tally.bad_loads) == (2, 1)
