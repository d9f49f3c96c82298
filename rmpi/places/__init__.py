"""Nodes, named places, channels and supervision: processes with mailboxes, on this machine and on others.

    from rmpi import places

    def echo(mailbox):
        for message in mailbox:
            mailbox.put(message)

    node = places.create_node("host2")
    place = node.spawn(echo, name="echo")
    place.put("Hello")
    print(place.get(timeout=5))

The names below are loaded when they are first used (PEP 562), so that a booting node imports no more than it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmpi.places.channel import Channel as Channel
    from rmpi.places.channel import Mailbox as Mailbox
    from rmpi.places.channel import Message as Message
    from rmpi.places.creation import connect as connect
    from rmpi.places.creation import create_node as create_node
    from rmpi.places.creation import create_node_future as create_node_future
    from rmpi.places.creation import create_nodes as create_nodes
    from rmpi.places.creation import here as here
    from rmpi.places.creation import nodes as nodes
    from rmpi.places.creation import unite as unite
    from rmpi.places.guest import AttachedNode as AttachedNode
    from rmpi.places.guest import attach as attach
    from rmpi.places.handles import Command as Command
    from rmpi.places.handles import Node as Node
    from rmpi.places.handles import NodeStatus as NodeStatus
    from rmpi.places.handles import Place as Place
    from rmpi.places.handles import PlaceStatus as PlaceStatus
    from rmpi.places.keyfile import write_new_key as write_new_key
    from rmpi.places.mailboxes import NamedMailbox as NamedMailbox
    from rmpi.places.mailboxes import open_mailbox as open_mailbox
    from rmpi.places.managedprocess import process as process
    from rmpi.places.messagerouter import MessageRouter as MessageRouter
    from rmpi.places.messagerouter import log_error as log_error
    from rmpi.places.monitoring import PlaceEvent as PlaceEvent
    from rmpi.places.monitoring import monitor as monitor
    from rmpi.places.opening import listen as listen
    from rmpi.places.opening import stop_listening as stop_listening
    from rmpi.places.outlet import ChannelStatistics as ChannelStatistics
    from rmpi.places.outlet import Outlet as Outlet
    from rmpi.places.pair import channel_pair as channel_pair
    from rmpi.places.selecting import select as select
    from rmpi.places.supervisor import restart_at_once as restart_at_once
    from rmpi.places.supervisor import restart_every as restart_every
    from rmpi.places.system import shutdown as shutdown
    from rmpi.places.timers import after as after
    from rmpi.places.timers import every as every
    from rmpi.places.typed import TypedChannel as TypedChannel
    from rmpi.places.whereto import DEFAULT_PORT as DEFAULT_PORT
    from rmpi.places.writing import write_flush as write_flush

_HOMES = {
    "rmpi.places.channel": ("Channel", "Mailbox", "Message"),
    "rmpi.places.creation": ("connect", "create_node", "create_node_future", "create_nodes", "here", "nodes", "unite"),
    "rmpi.places.guest": ("AttachedNode", "attach"),
    "rmpi.places.handles": ("Command", "Node", "NodeStatus", "Place", "PlaceStatus"),
    "rmpi.places.keyfile": ("write_new_key",),
    "rmpi.places.mailboxes": ("NamedMailbox", "open_mailbox"),
    "rmpi.places.managedprocess": ("process",),
    "rmpi.places.messagerouter": ("MessageRouter", "log_error"),
    "rmpi.places.monitoring": ("PlaceEvent", "monitor"),
    "rmpi.places.opening": ("listen", "stop_listening"),
    "rmpi.places.outlet": ("ChannelStatistics", "Outlet"),
    "rmpi.places.pair": ("channel_pair",),
    "rmpi.places.selecting": ("select",),
    "rmpi.places.supervisor": ("restart_at_once", "restart_every"),
    "rmpi.places.system": ("shutdown",),
    "rmpi.places.timers": ("after", "every"),
    "rmpi.places.typed": ("TypedChannel",),
    "rmpi.places.whereto": ("DEFAULT_PORT",),
    "rmpi.places.writing": ("write_flush",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'rmpi.places' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
