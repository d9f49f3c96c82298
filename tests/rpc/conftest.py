import threading
import time

import pytest

from rmpi import rpc
from rmpi.places.pair import channel_pair
from rmpi.rpc import serving
from rmpi.rpc.server import Serving


class Served:
    """``served(Class, *args, **kwargs)`` is a stub of an instance that a thread of this process serves."""

    def __init__(self):
        self._running = []

    def __call__(self, cls, *args, **kwargs):
        near, far = channel_pair()
        thread = threading.Thread(target=Serving(cls), args=(far, args, kwargs), name=f"a {cls.__name__}")
        thread.start()
        stub = cls.over(near)
        self._running.append((stub, far, thread))
        return stub

    def until_queued(self, stub, count):
        """Wait until so many messages wait for the server, which is busy."""
        (inbox,) = [far for known, far, _ in self._running if known is stub]
        limit = time.monotonic() + 20
        while inbox.statistics().queued < count:
            assert time.monotonic() < limit
            time.sleep(0.001)

    def end(self):
        for stub, _, thread in self._running:
            rpc.stop(stub, timeout=20)
            rpc.close(stub)
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setattr(serving, "LOOK_EVERY", 0)
    served = Served()
    yield served
    served.end()
