import threading

import pytest

from rmpi import rpc
from rmpi.places.pair import channel_pair
from rmpi.rpc.server import serve


@pytest.fixture
def served():
    """``served(Class, *args, **kwargs)`` is a stub of an instance that a thread of this process serves."""
    stubs, threads = [], []

    def start(cls, *args, **kwargs):
        near, far = channel_pair()
        thread = threading.Thread(target=serve, args=(far, cls, args, kwargs), name=f"a {cls.__name__}")
        thread.start()
        threads.append(thread)
        stubs.append(cls.over(near))
        return stubs[-1]

    yield start
    for stub in stubs:
        rpc.stop(stub, timeout=20)
        rpc.close(stub)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
