"""Every exception rmpi raises on purpose.

    RmpiError
    ├── UsageError         the caller broke a rule: fix the program
    │   ├── RankError          a rank that the communicator does not have
    │   ├── NameNotFound       a name that no place bears
    │   └── CollectiveMismatch ranks called different things; both calls are named
    ├── ChannelClosed      *we* closed it
    ├── PeerLost           *they* went away
    │   ├── RankFailed         a rank died: which, where, why
    │   └── PeerExited         it ended well, and we still waited for it
    ├── Deadlock           every rank waits and nothing is on its way
    ├── DeadlineExceeded   time ran out; also a TimeoutError
    ├── WireError          bytes that are not our protocol: a bug, or a stranger
    ├── RemoteError        code in another place raised; carries its traceback as text
    └── LaunchError        a host, file or option that the launcher cannot use

The tree splits only where a caller would act differently. Blame is in the type: `UsageError` is yours,
`WireError` is theirs, `assert` is ours. The library never exits the process.
"""

from __future__ import annotations


class RmpiError(Exception):
    """Root of everything rmpi raises on purpose."""


class UsageError(RmpiError):
    """The caller broke a rule. Nothing was sent and nothing changed; fix the program."""


class RankError(UsageError):
    """A rank outside ``0 … size-1`` of the communicator."""


class NameNotFound(UsageError):
    """No place bears that name on that node."""


class CollectiveMismatch(UsageError):
    """Ranks called different collectives, or the same one with arguments that must agree.

    Raised on every rank of the communicator, which cannot be used afterwards.
    """


class ChannelClosed(RmpiError):
    """*We* closed the channel, communicator or endpoint; it cannot be used any more."""


class PeerLost(RmpiError):
    """*They* went away: nothing more will come from that peer."""


class RankFailed(PeerLost):
    """A rank died before it had finished.

    Attributes:
        rank: Its rank in the job.
        host: The host it ran on.
        cause: In words: ``"killed by SIGKILL"``, ``"exit status 3"``, ``"host lost"``.
    """

    def __init__(self, rank: int, host: str, cause: str) -> None:
        super().__init__(f"rank {rank} on {host} failed: {cause}")
        self.rank = rank
        self.host = host
        self.cause = cause

    def __reduce__(self) -> tuple[type[RankFailed], tuple[int, str, str]]:
        return RankFailed, (self.rank, self.host, self.cause)


class PeerExited(PeerLost):
    """A rank ended well, everything it had sent was delivered, and this call still waited for it."""


class Deadlock(RmpiError):
    """Every rank waits and nothing is on its way. The text names who waits for whom, and where."""


class DeadlineExceeded(RmpiError, TimeoutError):
    """The ``timeout`` of the call passed first. What is usable afterwards is said by each call."""


class WireError(RmpiError):
    """Bytes that are not our protocol. The link that carried them is closed."""


class RemoteError(RmpiError):
    """Code in another place raised. The text holds its type and message; so does its traceback, as printed there.

    Text, and not the exception itself: its class may not exist here, and what it refers to stays where it is.

    Attributes:
        type_name: ``"KeyError"``, ``"json.JSONDecodeError"``; empty where nobody could tell.
        message: What ``str()`` of the exception gave there.
        traceback: As Python would have printed it there, the last line included.
    """

    def __init__(self, text: str, *, type_name: str = "", message: str = "", traceback: str = "") -> None:
        super().__init__(text)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback


class LaunchError(RmpiError):
    """A host, file or option the launcher cannot use: says which, and what to do.

    Attributes:
        status: What ``rmpi-run`` exits with: 2 for options and hostfiles, 127 for a program that does not
            exist, 126 for one that cannot be run, 125 for everything else (hosts, ssh, ports).
    """

    def __init__(self, message: str, *, status: int = 125) -> None:
        super().__init__(message)
        self.status = status
