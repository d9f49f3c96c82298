"""Fixtures: endpoints that are closed after the test, and threads to drive them."""

import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from rmpi.transport.endpoint import Endpoint
from rmpi.transport.media import why_no_shm

sys.path.insert(0, str(Path(__file__).parent))

from joined import COLLECTIVE, CONTEXT, MEDIA, settle


@pytest.fixture
def new_endpoint():
    """``new_endpoint(ident, **options)``: an endpoint with the two contexts open, closed after the test."""
    endpoints = []

    def new(ident, **options):
        endpoint = Endpoint(ident, lambda _peer: None, **options)
        endpoint.open_context(CONTEXT, [0, 1], collective=False)
        endpoint.open_context(COLLECTIVE, [0, 1], collective=True)
        endpoints.append(endpoint)
        return endpoint

    yield new
    for endpoint in endpoints:
        endpoint.close()


@pytest.fixture
def join(new_endpoint):
    """``join(medium, **options)``: endpoints 0 and 1, joined by a link."""

    def joined(medium="unix", **options):
        if medium == "shm" and why_no_shm() is not None:
            pytest.skip(str(why_no_shm()))
        a, b = new_endpoint(0, **options), new_endpoint(1, **options)
        MEDIA[medium](a, b)
        settle(a, b)
        return a, b

    return joined


@pytest.fixture
def beside():
    """``beside(function, *args)``: a future of what it returns in a thread of its own."""
    threads = []

    def run(function, *args):
        future = Future()
        thread = threading.Thread(target=_fulfil, args=(future, function, args), daemon=True)
        threads.append(thread)
        thread.start()
        return future

    yield run
    for thread in threads:
        thread.join(5)


def _fulfil(future, function, args):
    try:
        future.set_result(function(*args))
    except BaseException as error:
        future.set_exception(error)
