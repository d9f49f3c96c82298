"""Placement: which rank runs on which host.

Ranks fill the hosts in the order given, each up to its slots ("map by slot"), so neighbours in rank are
neighbours on a machine wherever that is possible. Ranks beyond all slots, when they are allowed, are spread
evenly over the hosts that may take more.

Two numbers per host decide everything. Its *slots* are what it takes comfortably; its *limit* is what it
takes at all: ``max_slots``, ``per_host``, or whatever comes. Stated slots may be exceeded only on request,
because somebody meant them. Slots that nobody stated are a default and bind nobody, so a laptop runs eight
ranks without being asked twice.

This module knows counts. It does not know whether the hosts exist, nor the cores of any machine but this one.
Its invariant: the ranks of a host are consecutive, hosts keep their order, and no host exceeds its limit.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from rmpi.errors import LaunchError
from rmpi.places.hosts import HostSpec, is_local

MAX_RANKS = 65_536  # of one job; a launch with more is refused


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each rank of a job runs.

    Attributes:
        hosts: The hosts that got ranks, in rank order.
        host_of: For each rank the index of its host in ``hosts``; never decreases.
        warnings: What the user should be told before the job starts, one line each.
    """

    hosts: tuple[HostSpec, ...]
    host_of: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.host_of)

    def ranks_on(self, host: int) -> tuple[int, ...]:
        """The ranks on ``hosts[host]``: consecutive, at least one."""
        return tuple(range(bisect_left(self.host_of, host), bisect_right(self.host_of, host)))

    def local_rank(self, rank: int) -> int:
        """Counting from 0, which of its host's ranks ``rank`` (0 … size-1) is."""
        return rank - bisect_left(self.host_of, self.host_of[rank])


def place(
    hosts: Sequence[HostSpec],
    ranks: int | None = None,
    *,
    per_host: int | None = None,
    oversubscribe: bool | None = None,
    cores: int,
) -> Placement:
    """Decide which host runs which rank.

    Args:
        hosts: At least one, each once, as `parse_hostfile` and `parse_host_list` return them.
        ranks: How many, 1 to 65536. None: ``per_host`` on every host, else as many as there are slots.
        per_host: The most ranks any host gets; also the slots of a host that states none (1 without it).
        oversubscribe: Whether slots may be exceeded. None: only if no host states any. False binds hosts
            that state none, too: this machine, if it is the only host, to its cores, others to one rank.
        cores: How many processors of this machine the job may use.

    Raises:
        LaunchError: Status 2: the ranks do not fit, and how many would; or a number out of range.
    """
    if not hosts:
        raise LaunchError("no host to place ranks on", status=2)
    if per_host is not None:
        _check_range("ranks per host", per_host)
    if ranks is None:
        ranks = sum(per_host or host.slots or 1 for host in hosts)
    _check_range("ranks", ranks)
    counts = _counts(hosts, ranks, per_host, oversubscribe, cores)
    return _placement(hosts, counts, _warnings(hosts, ranks, cores))


def _check_range(what: str, number: int) -> None:
    if not 1 <= number <= MAX_RANKS:
        raise LaunchError(f"{number} {what}: a job has 1 to {MAX_RANKS}", status=2)


def _counts(
    hosts: Sequence[HostSpec], ranks: int, per_host: int | None, oversubscribe: bool | None, cores: int
) -> list[int]:
    """How many ranks each of ``hosts`` gets, 0 included."""
    limits = [min(ranks, per_host or ranks, host.max_slots or ranks) for host in hosts]
    if sum(limits) < ranks:
        raise _beyond_limits(hosts, ranks, per_host, limits)
    unstated = per_host or 1
    if oversubscribe is False:
        unstated = cores if _is_this_machine_alone(hosts) else 1
    slots = [min(host.slots or unstated, limit) for host, limit in zip(hosts, limits, strict=True)]
    if ranks <= sum(slots):
        return _filled(ranks, slots)
    stated = any(host.slots is not None for host in hosts)
    if oversubscribe is False or (stated and not oversubscribe):
        raise _beyond_slots(hosts, ranks, per_host, slots, stated)
    return _spread(ranks, slots, limits)


def _filled(ranks: int, slots: list[int]) -> list[int]:
    """Host after host up to its slots, until no rank is left."""
    counts = []
    for room in slots:
        counts.append(min(ranks, room))
        ranks -= counts[-1]
    return counts


def _spread(ranks: int, slots: list[int], limits: list[int]) -> list[int]:
    """All slots, then the excess as evenly as the limits permit; the odd ones go to the first hosts."""

    def with_excess(excess: int) -> list[int]:
        return [min(room + excess, limit) for room, limit in zip(slots, limits, strict=True)]

    enough = bisect_left(range(ranks), ranks, key=lambda excess: sum(with_excess(excess)))
    counts = with_excess(enough - 1)
    odd = ranks - sum(counts)
    roomy = [host for host, limit in enumerate(limits) if counts[host] < limit]
    for host in roomy[:odd]:
        counts[host] += 1
    return counts


def _placement(hosts: Sequence[HostSpec], counts: list[int], warnings: tuple[str, ...]) -> Placement:
    used = [(host, count) for host, count in zip(hosts, counts, strict=True) if count]
    host_of = tuple(index for index, (_, count) in enumerate(used) for _ in range(count))
    return Placement(tuple(host for host, _ in used), host_of, warnings)


def _is_this_machine_alone(hosts: Sequence[HostSpec]) -> bool:
    return len(hosts) == 1 and is_local(hosts[0], ())


def _warnings(hosts: Sequence[HostSpec], ranks: int, cores: int) -> tuple[str, ...]:
    if not _is_this_machine_alone(hosts) or ranks <= cores:
        return ()
    return (f"{ranks} ranks share {_some(cores, 'core')} of {hosts[0]}: they will wait for one another",)


# ---- what does not fit, and what to do about it ----


def _beyond_limits(hosts: Sequence[HostSpec], ranks: int, per_host: int | None, limits: list[int]) -> LaunchError:
    if per_host is not None and per_host * len(hosts) < ranks:
        reason = f"{_some(len(hosts), 'host')} with at most {per_host} each take {sum(limits)}"
        advice = "add hosts or allow more ranks per host"
    else:
        reason = f"max_slots leaves room for {sum(limits)} ({_list(hosts, limits)})"
        advice = "add hosts or raise max_slots"
    return LaunchError(f"{ranks} ranks asked for, but {reason}: {advice}", status=2)


def _beyond_slots(
    hosts: Sequence[HostSpec], ranks: int, per_host: int | None, slots: list[int], stated: bool
) -> LaunchError:
    there_are = f"there {'is' if sum(slots) == 1 else 'are'} {_some(sum(slots), 'slot')}"
    if per_host is not None:
        there_are += f" at no more than {per_host} per host"
    advice = "ask for fewer, state more slots, or add --oversubscribe"
    if not stated:
        advice = "state slots=N in the hostfile, or replace --no-oversubscribe by --oversubscribe"
    text = f"{ranks} ranks asked for, but {there_are} ({_list(hosts, slots)}): {advice}"
    return LaunchError(text, status=2)


def _list(hosts: Sequence[HostSpec], numbers: list[int]) -> str:
    """``a 4, b 2``, cut short after a few hosts."""
    shown = [f"{host} {number}" for host, number in zip(hosts[:4], numbers, strict=False)]
    more = [f"{len(hosts) - 4} more hosts"] if len(hosts) > 4 else []
    return ", ".join(shown + more)


def _some(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
