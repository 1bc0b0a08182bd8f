"""The fixture `cluster`: three hosts, for all tests of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster, temporary
from requirements import missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three hosts: node1, node2, node3, mended after each test. Skips where the machine lacks something."""
    if sentence := missing():
        pytest.skip(sentence)
    cluster = temporary()
    with cluster:
        cluster.end_with_me()
        yield cluster


@pytest.fixture(autouse=True)
def _mended(request: pytest.FixtureRequest) -> Iterator[None]:
    """Has every test find all hosts whole and without jobs."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").mend()
