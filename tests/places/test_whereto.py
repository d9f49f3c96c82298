"""Addresses as people write them, and back."""

import pytest

from rmpi.errors import LaunchError
from rmpi.places.whereto import parse_where, show_where


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("host2", ("host2", 6340)),
        ("host2:7000", ("host2", 7000)),
        ("host2:0", ("host2", 0)),
        ("10.0.0.5:65535", ("10.0.0.5", 65535)),
        ("[::1]:7000", ("::1", 7000)),
        ("[::1]", ("::1", 6340)),
        ("fe80::1%eth0", ("fe80::1%eth0", 6340)),
    ],
)
def test_a_port_may_follow_the_host(text, where):
    assert parse_where(text, 6340) == where
    assert parse_where(show_where(*where), 1) == where


@pytest.mark.parametrize("text", ["", ":7000", "[::1", "[::1]7000", "a b", "a,b", "alice@host2", "host2/x"])
def test_without_a_host_nothing_can_be_found(text):
    with pytest.raises(LaunchError, match="no host in it can be made out") as refused:
        parse_where(text, 6340)
    assert refused.value.status == 2


@pytest.mark.parametrize("port", ["", "65536", "-1", "x", "7 ", "٣", "000006340"])
def test_a_port_is_a_number(port):
    with pytest.raises(LaunchError, match="a port is a number from 0 to 65535"):
        parse_where(f"host2:{port}", 6340)
