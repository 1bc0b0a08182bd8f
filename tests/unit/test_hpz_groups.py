"""Groups of ranks that keep a copy of the weights of their own (hpZ)."""

import pytest

from medsft.engine.distributed import AgreedError
from medsft.engine.zero import _check_groups


@pytest.mark.parametrize(("size", "world_size"), [(1, 3), (2, 4), (8, 16), (8, 8), (8, 3)])
def test_ranks_that_divide_into_groups_or_make_less_than_one(size, world_size):
    _check_groups({"zero_optimization": {"zero_hpz_partition_size": size}}, world_size)
    _check_groups({"zero_optimization": {}}, world_size)


def test_ranks_that_do_not():
    with pytest.raises(AgreedError, match="zero_hpz_partition_size is 8, but 12 ranks do not divide"):
        _check_groups({"zero_optimization": {"zero_hpz_partition_size": 8}}, 12)
