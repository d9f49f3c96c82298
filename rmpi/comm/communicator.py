"""The communicator: an ordered group of places, and what they can do together.

`Comm` is what users hold. Messages come from `PointToPoint`, collectives from `Collectives`; here communicators
are made of communicators, ranks are told what is theirs, and everything ends.

A communicator made here shares the endpoint, and so links and memory, with its parent. What keeps their traffic
apart is the context alone, which is derived from the parent's (`rmpi.comm.family`): next to nothing is sent to make
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from rmpi.comm import calls
from rmpi.comm.arguments import checked_code, checked_rank
from rmpi.comm.collective import Collectives
from rmpi.comm.driver import signature
from rmpi.comm.family import Family, derived
from rmpi.comm.partition import partition
from rmpi.errors import ChannelClosed, RankError, UsageError
from rmpi.transport.callsite import call_site

if TYPE_CHECKING:
    from rmpi.comm.cart import Cart
    from rmpi.places.channel import Channel


class Comm(Collectives):
    """An ordered group of ranks ``0 … size-1``.

    Made by `rmpi.init`, and of each other by `split`, `split_by_host`, `dup`, ``comm[ranks]`` and `cart`. Every method
    that can wait takes ``timeout`` in seconds (None waits for ever) and raises `DeadlineExceeded` when it passes,
    `RankFailed` when a rank it needs dies, and `PeerExited` when that rank ended well without doing what this call
    waits for. Nonblocking calls begin with ``i`` and return a `Request`, whose `Request.wait` raises the same.

    Collectives are called by every rank, in the same order, with the same root and operator, and for
    reductions with arrays of the same shape and dtype; else all of them raise `CollectiveMismatch`, a rank that needed
    nobody in that call in its next one.

    Many threads may use one communicator: messages with a tag or context per thread, collectives from one thread at a
    time. A forked child may not. For time stamps use `time.perf_counter`.

    Attributes:
        rank: Mine, from 0.
        size: How many there are.
        hosts: Where each rank runs, by rank.
    """

    __iter__ = None  # else __getitem__ would make it look like a sequence

    def __init__(self, family: Family, members: Sequence[int], context: int, hosts: Sequence[str]) -> None:
        super().__init__(family, members, context, hosts)
        family.first = family.first or self
        self.hosts = tuple(hosts)
        self._chosen: dict[tuple[int, ...], int] = {}
        self._ended = False

    # ------------------------------------------------------------------------------------- groups

    def split(self, color: object, key: Any = 0, *, timeout: float | None = None) -> Comm | None:
        """One new communicator for each colour. A collective call.

        Args:
            color: Ranks with equal ones come together; any value that can be sent and compared. None: in no
                communicator.
            key: Ranks are ordered by it, and among equal ones as they are here. Any values that can be compared.

        Returns:
            The communicator of this rank's colour; None if that is None.

        Raises:
            UsageError: On all ranks: colours, or the keys of one of them, cannot be compared. No communicator was made.
        """
        group = self._group
        _, schedule, shape = calls.allgather(group, (color, key), concatenate=False, out=None)
        pairs = self._driver.run((_SPLIT, schedule, shape), timeout)
        number = self._count()
        groups = _groups(pairs)
        mine = next((ranks for ranks in groups if self.rank in ranks), None)
        return None if mine is None else self._make(mine, "split", number, min(mine))

    def split_by_host(self, *, timeout: float | None = None) -> Comm:
        """One new communicator for each host, of the ranks that share its memory, in their order. A collective call."""
        self._driver.run(calls.barrier(self._group, _SPLIT_BY_HOST), timeout)
        here = self.hosts[self.rank]
        ranks = [rank for rank, host in enumerate(self.hosts) if host == here]
        return self._make(ranks, "split_by_host", self._count(), ranks[0])

    def dup(self, *, timeout: float | None = None) -> Comm:
        """The same ranks once more, with traffic of their own: for a library, or a second thread. A collective call."""
        self._driver.run(calls.barrier(self._group, _DUP), timeout)
        return self._make(range(self.size), "dup", self._count())

    def cart(
        self, dims: int | Sequence[int], periods: bool | Sequence[bool] = False, *, timeout: float | None = None
    ) -> Cart | None:
        """The ranks as a grid, in row-major order. A collective call, with the same arguments on all ranks.

        Args:
            dims: How many dimensions it has, which are then as equal as ``size`` allows; or how many ranks there are
                along each, where 0 means: choose so that all ranks are used.
            periods: Which axes are rings: all or none of them, or one bool for each.

        Returns:
            The grid; None on ranks beyond the product of ``dims``, which are in no grid.

        Raises:
            UsageError: There is no such grid on so many ranks. The text says which there is.
        """
        from rmpi.comm import cart  # a grid is a communicator, and this module knows nothing of it

        return cart.make(self, dims, periods, timeout)

    def __getitem__(self, ranks: slice | Iterable[int]) -> Comm:
        """A communicator of some ranks, in the order given: ``comm[:4]``, ``comm[[3, 1]]``, ``comm[range(0, 8, 2)]``.

        Called by exactly these ranks, in the same order relative to each other's calls; others need not know.
        Nothing is sent.

        Raises:
            RankError: There is no such rank, or it is there twice, or this one is not among them.
            UsageError: These are no ranks.
        """
        chosen = self._chosen_by(ranks)
        if self.rank not in chosen:
            raise RankError(f"comm[…] is called by the ranks that it is made of, {list(chosen)}; this is {self.rank}")
        number = self._chosen.get(chosen, 0)
        self._chosen[chosen] = number + 1
        return self._make(chosen, "ranks", number, *chosen)

    def _chosen_by(self, ranks: slice | Iterable[int]) -> tuple[int, ...]:
        if isinstance(ranks, slice):
            chosen = tuple(range(self.size)[ranks])
        elif isinstance(ranks, Iterable) and not isinstance(ranks, (str, bytes)):
            chosen = tuple(checked_rank(rank, self.size, "a rank in comm[…]") for rank in ranks)
        else:
            raise UsageError(f"comm[…] takes a slice or several ranks, like comm[:2] or comm[[0, 2]], not {ranks!r}")
        if len(set(chosen)) != len(chosen):
            raise RankError(f"comm[…]: a rank is there twice: {list(chosen)}")
        return chosen

    def _count(self) -> int:
        """The number of a communicator that all ranks make of this one: that of the collective by which they agreed to.

        So ranks have the same number even if a signal handler ended the call of one of them at its very end.
        """
        return self._driver.called

    def _make(self, ranks: Sequence[int], kind: str, *numbers: int) -> Comm:
        return Comm(*self._parts(ranks, kind, *numbers))

    def _parts(self, ranks: Sequence[int], kind: str, *numbers: int) -> tuple[Family, list[int], int, list[str]]:
        """What a communicator of these ranks is made of."""
        context = derived(self._context, kind, *numbers)
        members = [self._members[rank] for rank in ranks]
        return self._family, members, context, [self.hosts[rank] for rank in ranks]

    def free(self) -> None:
        """End this communicator here: later calls, and those that wait, raise `ChannelClosed`. Others are not told.

        What comes for it later is dropped. Communicators made of it stay.

        Raises:
            UsageError: It is that of `rmpi.init`.
        """
        if self._family.first is self:
            raise UsageError("the communicator of rmpi.init cannot be freed: it ends with the program or its block")
        if not self._ended:
            self._ended = True
            self._close()

    # ------------------------------------------------------------------------------------ channels

    def channel_pair(self, limit: int | None = None) -> tuple[Channel, Channel]:
        """Two channels (`rmpi.places`): what is put into one is got from the other, also by other ranks.

            ours, theirs = comm.channel_pair()
            comm.send(theirs, 1)

        Either end can be sent to other ranks of the job, by any communicator or channel, to several too. It arrives as
        a channel that puts where this one puts: what rank 1 puts, ``ours.receive()`` gets, with the channel to answer
        it by. `rmpi.places.select` waits for several. They belong to the job: no communicator's end, nor its `revoke`,
        is theirs. Not a collective call.

        A rank that waits for a channel from another rank, which ends, is told as in `recv`: by `RankFailed` or
        `PeerExited`, after all that had come.

        Args:
            limit: How many messages may wait in each direction; see `rmpi.places.channel_pair`.

        Raises:
            UsageError: ``limit`` is no positive number; or ranks are threads of one process.
        """
        from rmpi.places.pair import pair_of  # late: most ranks have no channels

        member = self._family.member
        if member is None:
            raise UsageError("these ranks are threads of one process: channels lead from process to process")
        return pair_of(member, limit)

    # ---------------------------------------------------------------------------------- one's share

    def partition(self, n: int) -> tuple[int, int]:
        """This rank's share of ``n`` items: ``(start, count)``. The first ``n % size`` ranks get one more.

        10 items over 3 ranks: (0, 4), (4, 3), (7, 3). Nothing is communicated.
        """
        return partition(n, self.size, self.rank)

    def share(self, n: int) -> slice:
        """`partition` as a slice: ``points[comm.share(len(points))]``."""
        start, count = partition(n, self.size, self.rank)
        return slice(start, start + count)

    # ------------------------------------------------------------------------------------------ end

    def revoke(self) -> None:
        """Make this communicator unusable for all its ranks; any of them may, without the others.

        Calls that wait in it, here in other threads and on every other rank, raise `ChannelClosed` with a text that
        says who revoked it and where, and so do all later ones: here at once, on another rank from when it hears of
        it, within a call. Other communicators stay usable.
        """
        why = f"this communicator was revoked by rank {self.rank} at {call_site()[1]}"
        for context in (self._context, self._context + 1):
            self._endpoint.give_up(context, ChannelClosed(why))
        self._family.keeper.revoke(self._context, why)

    def abort(self, code: int = 1) -> NoReturn:
        """End the whole job, whatever its other ranks do: ``rmpi-run`` exits with ``code``, and says who called.

        The others are ended as when a rank fails: those that wait for this one raise `RankFailed`, then all are
        terminated. What this rank has sent may not arrive.

        Args:
            code: An exit status, 0 to 255.

        Raises:
            SystemExit: With ``code``, always: in the main thread it ends this process the ordinary way.
            UsageError: ``code`` is no exit status.
        """
        status = checked_code(code)
        self._family.keeper.abort(status, f"called abort({status}) at {call_site()[1]}")
        raise SystemExit(status)

    def __enter__(self) -> Comm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the job, if this is the communicator of `rmpi.init`; else `free` this one."""
        if kind is None and not self._ended:
            self._ended = True
            if self._family.first is self:
                self._family.keeper.leave()
            else:
                self._close()

    def __repr__(self) -> str:
        return f"<Comm rank {self.rank} of {self.size}>"


def _groups(pairs: Sequence[tuple[Any, Any]]) -> list[list[int]]:
    """The ranks of each colour, ordered by key, of all pairs of colour and key: the same, or an error, everywhere."""
    colors: list[Any] = []
    groups: list[list[int]] = []
    try:
        for rank, (color, _) in enumerate(pairs):
            if color is None:
                continue
            if color not in colors:
                colors.append(color)
                groups.append([])
            groups[colors.index(color)].append(rank)
    except Exception as error:
        raise UsageError(f"split: the colours cannot be compared: {error}") from None
    for color, ranks in zip(colors, groups, strict=True):
        try:
            ranks.sort(key=lambda rank: pairs[rank][1])
        except Exception as error:
            raise UsageError(f"split: the keys of colour {color!r:.80} cannot be ordered: {error}") from None
    return groups


_SPLIT = signature("split")
_SPLIT_BY_HOST = signature("split_by_host")
_DUP = signature("dup")
