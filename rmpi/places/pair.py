"""Two channels that are the two ends of one."""

from __future__ import annotations

from rmpi.places.channel import Channel
from rmpi.places.membership import current
from rmpi.places.whereabouts import Address


def channel_pair() -> tuple[Channel, Channel]:
    """Two channels in this process: what is put into one is got from the other.

        a, b = channel_pair()
        a.put("Hello")
        assert b.get() == "Hello"

    It needs no system; but if there is one, or will be, either end may be sent over any of its channels. Whoever gets
    ``b`` then can put what is got from ``a``, and ``a.receive()`` gets it with a channel for the answer. What is put
    into ``a`` is got from the ``b`` that was made here, which does not move.

    When one end is closed, the loop over the other ends.
    """
    member = current()
    boxes = member.new_box(), member.new_box()
    ident = member.endpoint.ident

    def end(mine: int, other: int) -> Channel:
        address = Address(member.system, 0, ident, other, "the other end of a pair")
        return Channel(member, address, box=mine, announces=True)

    return end(*boxes), end(*reversed(boxes))
