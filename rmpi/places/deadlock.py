"""Is this a deadlock? What the head makes of the reports of blocked ranks. [pure]

A rank reports that it is *blocked* when all its threads have waited for a while in calls without a time-out, and
nothing in it could send of its own accord. It says how much it has sent to each peer, and how much of what came from
each it has consumed. Two of its reports with the same ``stay`` and equal counts mean that between them it did nothing
at all: a stay is a wait that was not left, and counts only grow.

**The proof** takes two waves (Mattern, Algorithms for distributed termination detection, Distributed Computing 2, 1987,
doi:10.1007/BF01782776). The first are the reports that ranks make by themselves. When the head has one of every live
rank it asks all of them again, and only then. If all answer as before, there was a moment, between the last report and
the first question, at which every rank was blocked with the counts that it gave. If what each had sent to each other
was consumed, nothing was on its way at that moment: no rank has anything left to act on, and none acts by itself. So
nothing will ever happen. (For messages the second wave alone would do, because they are counted by pair: equal counts
make the answers a consistent cut with empty channels. But what routers say is not counted. It reaches a rank before the
question does, and whatever comes of it shows in the answer.)

Where a wave fails, ranks moved meanwhile, and the answers take the place of the reports. Every rank that was asked, and
stays blocked, reports once more after a while; when all have, they are asked again. If counts did agree, only not with
the reports of before, they are asked again at once. So a job that moves slowly costs a round in a second, and one in
which a single rank computes costs nothing: it is not asked before that rank is blocked too.

**No verdict**, for this can prove nothing then: a rank that is stopped, sleeps or computes neither reports nor answers;
nor does one that waits with a time-out. A rank that has failed may have taken counts to its grave. One that has ended
well counts as nothing: its peers are not blocked (`Endpoint.standing`) before they have seen the end of its links.

Counts that are unequal, and the same again in the next round, mean that something was lost on its way, or is very slow:
that is noted once, and not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rmpi.places.messages import Blocked
from rmpi.places.wording import ranks_text

MOST_LINES = 40
"""Lines of a verdict; of more, the rest is counted."""

MOST_PAIRS = 8
"""Pairs of ranks that are named where something is in flight."""

MANY = 16
"""Waits beyond which those at one place of the program are told in one line."""


@dataclass(frozen=True, slots=True)
class AskAll:
    """Ask every place whether it is still blocked."""

    round: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """It is a deadlock."""

    text: str


@dataclass(frozen=True, slots=True)
class InFlight:
    """Every rank waits, and the same is on its way as a while ago."""

    text: str


Step = AskAll | Verdict | InFlight | None


class DeadlockBook:
    """The reports of one job. Every method answers what is to be done now; nothing after the verdict."""

    def __init__(self, rank_of: Mapping[int, int]) -> None:
        """For the job whose endpoints have these ranks."""
        self._rank_of = rank_of
        self._live = set(rank_of)
        self._reports: dict[int, Blocked] = {}  # the latest of each rank that may still be blocked
        self._fresh: set[int] = set()  # have reported since everybody was asked
        self._round = 0
        self._before: dict[int, Blocked] = {}  # the reports that the answers are compared with
        self._answers: dict[int, Blocked] | None = None  # None: nobody was asked
        self._stuck: dict[int, Blocked] = {}  # the answers of the last round in which something was in flight
        self._noted = False
        self._over = False

    def blocked(self, endpoint: int, report: Blocked) -> Step:
        """A place is blocked, or still is."""
        if endpoint not in self._live or self._over:
            return None
        self._reports[endpoint] = report
        if not report.round:
            self._fresh.add(endpoint)
            return self._ask_if_all_are()
        if self._answers is None or report.round != self._round:
            return None
        self._answers[endpoint] = report
        return self._judge(self._answers) if self._answers.keys() >= self._live else None

    def awake(self, endpoint: int, round_: int) -> Step:
        """A place is not blocked: there is no deadlock, as far as this round goes."""
        if round_ == self._round:
            self._reports.pop(endpoint, None)
            self._fresh.discard(endpoint)
            self._answers = None
        return None

    def ended(self, endpoint: int, *, failed: bool) -> Step:
        """A place has ended. Others may have waited for it, and are told so before they are asked."""
        self._over = self._over or failed
        self._live.discard(endpoint)
        self._reports.pop(endpoint, None)
        self._answers = None
        return None if self._over else self._ask_if_all_are()

    def _ask_if_all_are(self) -> Step:
        """Begin a round, if every live rank has reported since the last and none is under way."""
        if self._answers is not None or not self._live or not self._fresh & self._reports.keys() >= self._live:
            return None
        return self._ask()

    def _ask(self) -> Step:
        self._fresh.clear()
        self._round += 1
        self._before = {endpoint: self._reports[endpoint] for endpoint in self._live}
        self._answers = {}
        return AskAll(self._round)

    def _judge(self, answers: dict[int, Blocked]) -> Step:
        """All have answered."""
        self._answers = None
        agree = all(_is_same(answers[endpoint], self._before[endpoint]) for endpoint in self._live)
        reports = {self._rank_of[endpoint]: answers[endpoint] for endpoint in self._live}
        under_way = list(self._under_way(answers))
        if agree and not under_way:
            self._over = True
            return Verdict(_Text(reports, self._rank_of).verdict())
        if not under_way:
            return self._ask()
        unchanged = all(map(_is_same, answers.values(), map(self._stuck.get, answers)))
        self._stuck = answers
        if agree and unchanged and not self._noted:
            self._noted = True
            return InFlight(
                f"every rank waits, but not all that was sent has been consumed: {'; '.join(under_way[:MOST_PAIRS])}"
            )
        return None

    def _under_way(self, answers: Mapping[int, Blocked]) -> Iterator[str]:
        """What was sent and is not consumed, in words."""
        counts: dict[tuple[int, int], list[int]] = {}
        for endpoint, report in answers.items():
            for peer, count in report.sent.items():
                counts.setdefault((endpoint, peer), [0, 0])[0] = count
            for peer, count in report.taken.items():
                counts.setdefault((peer, endpoint), [0, 0])[1] = count
        for (one, other), (sent, taken) in sorted(counts.items()):
            if sent != taken and self._live >= {one, other}:
                whom, who = self._rank_of[other], self._rank_of[one]
                yield f"rank {who} has sent {sent} to rank {whom}, which took {taken}"


def _is_same(one: Blocked, other: Blocked | None) -> bool:
    """Whether a rank has done nothing between these reports."""
    return other is not None and (one.stay, one.sent, one.taken) == (other.stay, other.sent, other.taken)


@dataclass(frozen=True, slots=True)
class _Wait:
    """What a thread of a rank waits for."""

    rank: int
    peers: tuple[int, ...]  # ranks
    what: str
    where: str
    context: int
    sequence: int

    @property
    def call(self) -> str:
        return f"{self.what} #{self.sequence}" if self.sequence >= 0 else self.what

    @property
    def place(self) -> tuple[str, str]:
        """What waits of many ranks at one place of the program have in common."""
        name, bracket, _ = self.what.partition("(")
        return (self.call if self.sequence >= 0 else f"{name}(…)" if bracket else name), self.where


class _Text:
    """The verdict in words: who waits for whom, in which call and where; the cycle; who is missing; what nobody reads.

    Ranks are those of the job, whatever communicator the calls are of.
    """

    def __init__(self, reports: Mapping[int, Blocked], rank_of: Mapping[int, int]) -> None:
        self._reports = dict(sorted(reports.items()))
        self._rank_of = rank_of
        self._waits = [
            _Wait(rank, self._ranks(endpoints), what, where, context, sequence)
            for rank, report in self._reports.items()
            for endpoints, what, where, context, sequence in report.waits
        ]

    def _ranks(self, endpoints: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted(self._rank_of[endpoint] for endpoint in endpoints if endpoint in self._rank_of))

    def verdict(self) -> str:
        parts = (self._who_waits(), self._who_is_missing(), self._what_nobody_reads(), self._cycle())
        lines = [f"  {line}" for part in parts for line in _shortened([*part])]
        return "\n".join(["every rank waits, and nothing is on its way:", *lines])

    def _who_waits(self) -> Iterator[str]:
        if len(self._waits) <= MANY:
            yield from map(_line, self._waits)
            return
        places: dict[tuple[str, str], list[_Wait]] = {}
        for wait in self._waits:
            places.setdefault(wait.place, []).append(wait)
        for (call, where), waits in places.items():
            if len(waits) == 1:
                yield _line(waits[0])
            else:
                yield f"ranks {ranks_text(wait.rank for wait in waits)} wait in {call} at {where}"

    def _who_is_missing(self) -> Iterator[str]:
        """Of each collective that somebody waits in, the ranks of its communicator that have not called it."""
        collectives = {(wait.context, wait.sequence): wait.call for wait in self._waits if wait.sequence >= 0}
        for (context, sequence), call in collectives.items():
            late = [rank for rank, report in self._reports.items() if report.calls.get(context, sequence) < sequence]
            if late:
                yield f"{_ranks(late)} {'has' if len(late) == 1 else 'have'} not called {call}"

    def _what_nobody_reads(self) -> Iterator[str]:
        for rank, report in self._reports.items():
            for source, tag, count in report.unread:
                messages = "1 message" if count == 1 else f"{count} messages"
                whose = self._ranks([source])
                if whose:
                    yield f"rank {rank} has {messages} from {_whom(rank, whose)} with tag {tag} that nobody asks for"

    def _cycle(self) -> Iterator[str]:
        """A cycle of ranks of which each waits for the next, if there is one of several."""
        waits_for: dict[int, int] = {}
        for wait in self._waits:
            others = [peer for peer in wait.peers if peer in self._reports]
            if len(self._reports[wait.rank].waits) == 1 and others:
                waits_for[wait.rank] = others[0]
        for start in waits_for:
            path = [start]
            while (following := waits_for.get(path[-1])) is not None and following not in path:
                path.append(following)
            if following is not None and len(cycle := path[path.index(following) :]) > 1:
                names = [str(rank) for rank in [*cycle, following]]
                if len(names) > MANY:
                    names[MANY // 2 : -MANY // 2] = ["…"]
                yield f"cycle: {' → '.join(names)}"
                return


def _line(wait: _Wait) -> str:
    target = f" for {_whom(wait.rank, wait.peers)}" if wait.peers else ""
    return f"rank {wait.rank} waits{target} in {wait.call} at {wait.where}"


def _whom(rank: int, peers: tuple[int, ...]) -> str:
    return "itself" if peers == (rank,) else _ranks(peers)


def _ranks(ranks: Iterable[int]) -> str:
    listed = list(ranks)
    return f"{'rank' if len(listed) == 1 else 'ranks'} {ranks_text(listed)}"


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= MOST_LINES:
        return lines
    return [*lines[:MOST_LINES], f"… and {len(lines) - MOST_LINES} more like these"]
