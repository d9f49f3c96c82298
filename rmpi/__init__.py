"""rmpi: SPMD programs in Python, with their own launcher and no system MPI.

    import rmpi

    comm = rmpi.init()
    start, count = comm.partition(len(points))
    total = comm.allreduce(points[start : start + count].sum(axis=0))

Run it with ``rmpi-run -n 4 script.py``. The names below are loaded when they are first used (PEP 562), so that
a launcher or a booting node, which import this package too, never import NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmpi.comm.bootstrap import init as init
    from rmpi.comm.communicator import ANY_SOURCE as ANY_SOURCE
    from rmpi.comm.communicator import ANY_TAG as ANY_TAG
    from rmpi.comm.communicator import Comm as Comm
    from rmpi.comm.communicator import Status as Status
    from rmpi.comm.ops import MAX as MAX
    from rmpi.comm.ops import MIN as MIN
    from rmpi.comm.ops import PROD as PROD
    from rmpi.comm.ops import SUM as SUM
    from rmpi.comm.ops import Operator as Operator
    from rmpi.errors import ChannelClosed as ChannelClosed
    from rmpi.errors import CollectiveMismatch as CollectiveMismatch
    from rmpi.errors import DeadlineExceeded as DeadlineExceeded
    from rmpi.errors import Deadlock as Deadlock
    from rmpi.errors import LaunchError as LaunchError
    from rmpi.errors import NameNotFound as NameNotFound
    from rmpi.errors import PeerExited as PeerExited
    from rmpi.errors import PeerLost as PeerLost
    from rmpi.errors import RankError as RankError
    from rmpi.errors import RankFailed as RankFailed
    from rmpi.errors import RemoteError as RemoteError
    from rmpi.errors import RmpiError as RmpiError
    from rmpi.errors import UsageError as UsageError
    from rmpi.errors import WireError as WireError

__version__ = "0.1.0"

_HOMES = {
    "rmpi.comm.bootstrap": ("init",),
    "rmpi.comm.communicator": ("ANY_SOURCE", "ANY_TAG", "Comm", "Status"),
    "rmpi.comm.ops": ("MAX", "MIN", "PROD", "SUM", "Operator"),
    "rmpi.errors": (
        "ChannelClosed",
        "CollectiveMismatch",
        "Deadlock",
        "DeadlineExceeded",
        "LaunchError",
        "NameNotFound",
        "PeerExited",
        "PeerLost",
        "RankError",
        "RankFailed",
        "RemoteError",
        "RmpiError",
        "UsageError",
        "WireError",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'rmpi' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
