"""What calls cost with rmpi: what `rpc.py` runs. Each prints its figures as JSON.

python benchmarks/rpc_ours.py calls             # seconds per call, future, cast and item of a stream
python benchmarks/rpc_ours.py clients 200       # one client's calls while so many others call the same server
python benchmarks/rpc_ours.py places 1000       # named places on this machine, each of which answers a call
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rpc_peers import seconds_per_call
from rpc_servers import Adder, client

from rmpi import places, rpc

Figures = dict[str, float]

IN_FLIGHT = 500
"""Futures that are begun before the first is waited for."""

CASTS = 100_000
ITEMS = 20_000

PAUSE = 0.1
"""Seconds between two calls of each of many clients."""

WATCHED = 3.0
"""Seconds for which one client is watched among many."""

STARTERS = 8
"""Threads that start places."""


def calls() -> Figures:
    with Adder.at(places.here()) as adder:
        figures = {"call": seconds_per_call(lambda: adder.add(2, 3))}
        figures["call with a time limit"] = seconds_per_call(lambda: adder.add(2, 3, timeout=10))
        figures["future"] = seconds_per_call(lambda: adder.add.future(2, 3).result())
        figures["future, 500 in flight"] = seconds_per_call(lambda: _in_flight(adder)) / IN_FLIGHT
        figures["cast"] = _seconds_per_cast(adder)
        started = time.perf_counter()
        assert sum(1 for _ in adder.count(ITEMS)) == ITEMS
        figures["item of a stream"] = (time.perf_counter() - started) / ITEMS
    return figures


def _in_flight(adder: Adder) -> None:
    futures = [adder.add.future(number, 1) for number in range(IN_FLIGHT)]
    assert [future.result() for future in futures] == list(range(1, IN_FLIGHT + 1))


def _seconds_per_cast(adder: Adder) -> float:
    """Until the server has done the last."""
    started = time.perf_counter()
    for number in range(CASTS):
        adder.note(number)
    assert adder.casts() == CASTS
    return (time.perf_counter() - started) / CASTS


def clients(count: int) -> Figures:
    """How long the calls of one take, of those in which 99 of 100 are done too, and of the slowest of all."""
    here = places.here()
    with Adder.at(here, name="adder") as adder:
        with ThreadPoolExecutor(STARTERS) as pool:
            others = list(pool.map(lambda _: here.spawn(client, adder, PAUSE), range(count)))
        for other in others:
            assert other.get() == "ready"
        taken = _watch(adder)
        looking = seconds_per_call(lambda: rpc.close(Adder.connect(here, "adder")))
        for other in others:
            other.put("end")
        ended = [other.get() for other in others]
        assert all(calls for calls, _ in ended)
    return {
        "call": taken[len(taken) // 2],
        "99 of 100 calls": taken[len(taken) * 99 // 100],
        "slowest call of anybody": max(taken[-1], *(slowest for _, slowest in ended)),
        "finding the server by its name": looking,
    }


def _watch(adder: Adder) -> list[float]:
    """The calls of one client, the quickest first."""
    taken = []
    until = time.perf_counter() + WATCHED
    while (started := time.perf_counter()) < until:
        assert adder.add(2, 3) == 5
        taken.append(time.perf_counter() - started)
        time.sleep(0.001)
    return sorted(taken)


def named_places(count: int) -> Figures:
    here, started = places.here(), time.perf_counter()
    with ThreadPoolExecutor(STARTERS) as pool:
        list(pool.map(lambda number: Adder.at(here, name=f"adder {number}"), range(count)))
    up = time.perf_counter()
    adders = [Adder.connect(here, f"adder {number}") for number in range(count)]
    assert all(adder.add(number, 1) == number + 1 for number, adder in enumerate(adders))
    answered = time.perf_counter()
    assert all(adder.add(number, 1) == number + 1 for number, adder in enumerate(adders))
    again = time.perf_counter()
    return {
        "starting one": (up - started) / count,
        "finding one and calling it for the first time": (answered - up) / count,
        "calling it again": (again - answered) / count,
    }


MEASURES: dict[str, Callable[..., Figures]] = {"calls": calls, "clients": clients, "places": named_places}


def main() -> None:
    what, *rest = sys.argv[1:]
    figures = MEASURES[what](*map(int, rest))
    places.shutdown()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
