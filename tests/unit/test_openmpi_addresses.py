"""By which address rank 0 is found: real sockets of this machine."""

from __future__ import annotations

import socket

import psutil

from medsft.engine.openmpi import Listener, in_order, own_addresses, reachable, source_towards


def test_only_the_listener_of_this_run_counts():
    listener, other = Listener(), Listener()
    try:
        assert reachable(["127.0.0.1", "127.0.0.2"], listener.port, listener.token) == [
            "127.0.0.1",
            "127.0.0.2",
        ]
        assert reachable(["127.0.0.1"], other.port, listener.token) == []
        assert reachable([], listener.port, listener.token) == []
    finally:
        listener.close()
        other.close()
    assert reachable(["127.0.0.1"], listener.port, listener.token) == []
    with socket.create_server(("", listener.port)):
        pass  # it is free again


def test_addresses_of_this_host_are_neither_loopback_nor_link_local():
    addresses = own_addresses()
    known = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    assert set(addresses) <= known
    assert len(set(addresses)) == len(addresses)
    assert not [name for name in addresses if name.startswith(("127.", "fe80:")) or name == "::1"]


def test_what_the_kernel_sends_from_comes_first():
    assert source_towards("127.0.0.1") == "127.0.0.1"
    assert in_order(["192.0.2.9", "127.0.0.1"], ["127.0.0.1"]) == ["127.0.0.1", "192.0.2.9"]
    assert in_order(["192.0.2.9", "192.0.2.8"], []) == ["192.0.2.9", "192.0.2.8"]
    assert source_towards("256.1.1.1") is None
