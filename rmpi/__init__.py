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
    from rmpi import mapreduce as mapreduce
    from rmpi import places as places
    from rmpi import rpc as rpc
    from rmpi import taskfarm as taskfarm
    from rmpi.comm.bootstrap import init as init
    from rmpi.comm.cart import Cart as Cart
    from rmpi.comm.communicator import Comm as Comm
    from rmpi.comm.job import Job as Job
    from rmpi.comm.job import launch as launch
    from rmpi.comm.ops import BAND as BAND
    from rmpi.comm.ops import BOR as BOR
    from rmpi.comm.ops import BXOR as BXOR
    from rmpi.comm.ops import LAND as LAND
    from rmpi.comm.ops import LOR as LOR
    from rmpi.comm.ops import LXOR as LXOR
    from rmpi.comm.ops import MAX as MAX
    from rmpi.comm.ops import MAXLOC as MAXLOC
    from rmpi.comm.ops import MIN as MIN
    from rmpi.comm.ops import MINLOC as MINLOC
    from rmpi.comm.ops import PROD as PROD
    from rmpi.comm.ops import SUM as SUM
    from rmpi.comm.ops import Operator as Operator
    from rmpi.comm.request import Request as Request
    from rmpi.comm.request import as_completed as as_completed
    from rmpi.comm.request import wait_all as wait_all
    from rmpi.comm.request import wait_any as wait_any
    from rmpi.comm.status import ANY_SOURCE as ANY_SOURCE
    from rmpi.comm.status import ANY_TAG as ANY_TAG
    from rmpi.comm.status import Status as Status
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
    "rmpi.comm.cart": ("Cart",),
    "rmpi.comm.communicator": ("Comm",),
    "rmpi.comm.job": ("Job", "launch"),
    "rmpi.comm.ops": (
        "BAND",
        "BOR",
        "BXOR",
        "LAND",
        "LOR",
        "LXOR",
        "MAX",
        "MAXLOC",
        "MIN",
        "MINLOC",
        "PROD",
        "SUM",
        "Operator",
    ),
    "rmpi.comm.request": ("Request", "as_completed", "wait_all", "wait_any"),
    "rmpi.comm.status": ("ANY_SOURCE", "ANY_TAG", "Status"),
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

_PACKAGES = ("mapreduce", "places", "rpc", "taskfarm")

__all__ = [*_HOME_OF, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"rmpi.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'rmpi' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
