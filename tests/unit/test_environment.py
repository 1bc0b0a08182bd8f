import pytest

from medsft.engine.distributed import complete_environment
from medsft.errors import UserError

FULL = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_plain_process_becomes_a_world_of_one():
    environment = {}
    complete_environment(environment)
    assert {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")} == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }
    assert 0 < int(environment["MASTER_PORT"]) < 65536


def test_a_launchers_environment_is_left_alone():
    environment = dict(FULL)
    complete_environment(environment)
    assert environment == FULL


def test_mpirun_names_are_translated():
    environment = {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "2",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29500",
    }
    complete_environment(environment)
    assert (environment["RANK"], environment["LOCAL_RANK"], environment["WORLD_SIZE"]) == ("1", "0", "2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"WORLD_SIZE": "0"}, ["WORLD_SIZE='0'", "1 or more"]),
        ({"WORLD_SIZE": "two"}, ["WORLD_SIZE='two'"]),
        ({"RANK": "2"}, ["RANK='2'", "0 to 1"]),
        ({"RANK": "-1"}, ["RANK='-1'"]),
        ({"MASTER_ADDR": ""}, ["MASTER_ADDR", "launcher"]),
    ],
)
def test_a_senseless_environment_is_explained(change, words):
    with pytest.raises(UserError) as caught:
        complete_environment({**FULL, **change})
    assert all(word in str(caught.value) for word in words)


def test_half_an_environment_is_refused():
    with pytest.raises(UserError, match=r"has RANK but not .*WORLD_SIZE"):
        complete_environment({"RANK": "0"})
