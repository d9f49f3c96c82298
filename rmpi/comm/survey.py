"""Which medium joins which hosts: the rank program behind ``rmpi-run --info -v``.

Links are the same between all ranks of two hosts, so one pair of ranks speaks for each pair of hosts, and two
neighbours for a host alone. Every rank goes through the same list of pairs, so nobody waits in a circle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rmpi.comm.bootstrap import init

ALONE = "(one rank)"
"""In place of a medium, of a host with a single rank."""


def pairs(hosts: Sequence[str]) -> Iterator[tuple[str, str, int, int]]:
    """For every two hosts, and each with itself: their names, and a rank of either.

    Args:
        hosts: By rank. A host with one rank is paired with that rank alone.
    """
    names = list(dict.fromkeys(hosts))
    first = {name: hosts.index(name) for name in names}
    second = {name: (*(rank for rank, host in enumerate(hosts) if host == name), first[name])[1] for name in names}
    for index, name in enumerate(names):
        yield name, name, first[name], second[name]
        for other in names[index + 1 :]:
            yield name, other, first[name], first[other]


def main() -> None:
    """Connect, compare, and print the table on rank 0."""
    comm = init()
    found = []
    for here, there, one, two in pairs(comm.hosts):
        if comm.rank in (one, two) and one != two:
            peer = one + two - comm.rank
            comm.sendrecv(None, peer)
        if comm.rank == one:
            media = comm._endpoint.media()
            found.append((here, there, media[comm._members[two]] if one != two else ALONE))
    rows = comm.gather(found)
    if rows is not None:
        width = max(map(len, comm.hosts))
        for here, there, medium in sorted(row for part in rows for row in part):
            print(f"  {here:<{width}}  {there:<{width}}  {medium}")


if __name__ == "__main__":
    main()
