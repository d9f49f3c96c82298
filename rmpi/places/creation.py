"""Nodes: this machine's, others, and those that there are.

The user's program has a system of its own, whose head it is; a place belongs to the system that spawned it. Either may
add nodes, and whoever adds one names the host as `rmpi-run` does: what ssh can reach, rmpi can use.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from rmpi.errors import UsageError
from rmpi.places import membership
from rmpi.places.channel import Channel
from rmpi.places.handles import Command, Node, Output, Route, check_text, checked_environment, connect_on
from rmpi.places.hosts import MAX_PORT, parse_host_list
from rmpi.places.member import Member
from rmpi.places.routes import ROUTES
from rmpi.places.supervisor import policy_of
from rmpi.places.system import system_of_this_process
from rmpi.places.system_messages import ANY_NODE, AddNode, Survey, Unite

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]

OUTPUTS = ("forward", "label", "capture", "discard")

LOCAL_NAMES = (None, "", "localhost")


def member_of_this_process(of: Node | None = None) -> Member:
    """This process in its own system, or in that of a node; a program that has none yet begins one."""
    if of is not None:
        return of.member
    member = membership.current()  # of what was joined last; or one of a process that has only itself
    return member if isinstance(member, Member) else system_of_this_process().member


def here() -> Node:
    """The node that this process runs on; places that are spawned there run on this machine."""
    enrolled = member_of_this_process().enrolled
    return Node(member_of_this_process(), enrolled.node, enrolled.host)


def create_node(
    host: str | None = None,
    *,
    name: str = "",
    port: int = 0,
    python: str | None = None,
    output: Output = "forward",
    restart: object = None,
    solo: bool = False,
    route: Route = "auto",
    environment: Mapping[str, str] | None = None,
    directory: str | Path | None = None,
    rsh_agent: str | None = None,
    start_timeout: float = 60.0,
    of: Node | None = None,
) -> Node:
    """Start a node: the process that starts, names and watches places on one machine.

    Args:
        host: As for ``rmpi-run -H``: ``"host2"``, ``"alice@host2"``; it is reached by ssh, and rmpi must be installed
            there. None or ``"localhost"``: another node on this machine, without ssh.
        name: What to call it; by default what the host is called.
        port: Where its door listens; by default any port that is free.
        python: The interpreter there; by default ours, or one of the same version.
        output: What becomes of the lines that its places write: ``"forward"`` to our stdout and stderr, ``"label"``:
            the same with the name of the place in front, ``"capture"`` for `Node.captured`, or ``"discard"``.
        restart: What follows when it is lost, as for places: True or `restart_every`. Its places are started again.
        solo: Nobody else hears of it: `nodes` does not list it, and only this process finds its places.
        route: Which way data goes to and from its places: ``"direct"`` connections, ``"relay"`` through the nodes and
            the ssh sessions, or ``"auto"``: direct where that is possible.
        environment: Variables for its places, besides those that travel (``rmpi-run --help``).
        directory: Where its places start; by default the directory we are in, or, with ``of``, that of the head.
        rsh_agent: A program to reach the host with, instead of our own ssh.
        start_timeout: Seconds until it must be up.
        of: A node (`attach`) whose system it shall belong to, instead of our own: the head of that system starts it,
            from where that runs.

    Raises:
        LaunchError: The host cannot be used: says why, and what to do.
        UsageError: An argument is out of range.
    """
    policy = policy_of(restart)
    if policy.instead is not None or policy.on_final_fail is not None:
        raise UsageError("a node's restart= calls no functions: give True, or restart_every(…) without on_final_fail")
    if output not in OUTPUTS:
        raise UsageError(f"output must be one of {', '.join(OUTPUTS)}, not {output!r}")
    if route not in ROUTES:
        raise UsageError(f"route must be one of {', '.join(ROUTES)}, not {route!r}")
    if type(port) is not int or not 0 <= port <= MAX_PORT:
        raise UsageError(f"port must be a number from 0 to {MAX_PORT}, not {port!r}")
    wanted = "" if host in LOCAL_NAMES else str(host)
    if wanted and len(found := parse_host_list(wanted)) != 1:
        raise UsageError(f"{wanted!r} names {len(found)} hosts; create_nodes starts several")
    check_text("name", name)
    variables = checked_environment(environment)
    member = member_of_this_process(of)
    where = directory or (Path.cwd() if of is None else "")

    def order(number: int) -> AddNode:
        return AddNode(
            number,
            wanted,
            name,
            port,
            python or "",
            rsh_agent or "",
            solo,
            output,
            route,
            policy.rule.to_plain(),
            variables,
            str(Path(where).absolute()) if where else "",
            float(start_timeout),
        )

    node, label = member.ask(order, start_timeout + GIVE_UP, f"starting a node on {host or 'this machine'}")
    return Node(member, node, label)


GIVE_UP = 10.0
"""Seconds beyond the limit of a node's start, in which the head says that it has passed."""


def create_node_future(host: str | None = None, **options: Any) -> Future[Node]:
    """`create_node`, in the background."""
    future: Future[Node] = Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        try:
            future.set_result(create_node(host, **options))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name=f"rmpi creates {host}", daemon=True).start()
    return future


def create_nodes(hosts: Iterable[str | Mapping[str, Any] | None], **options: Any) -> list[Node]:
    """Start several nodes at once; they are returned in the order of ``hosts``.

    Args:
        hosts: For each the host, or a dictionary of what `create_node` takes.
        options: For all of them.

    Raises:
        ExceptionGroup: Of every `LaunchError`, with the host as its note; those that could be started are ended again.
    """
    wanted = [dict(each) if isinstance(each, Mapping) else {"host": each} for each in hosts]
    futures = [create_node_future(**{**options, **each}) for each in wanted]
    nodes: list[Node] = []
    errors: list[Exception] = []
    for each, future in zip(wanted, futures, strict=True):
        try:
            nodes.append(future.result())
        except Exception as error:
            error.add_note(f"host {each.get('host') or 'localhost'}")
            errors.append(error)
    if not errors:
        return nodes
    for node in nodes:
        node.kill()
    raise ExceptionGroup(f"{len(errors)} of {len(wanted)} nodes could not be started", errors)


def nodes(of: Node | None = None) -> list[Node]:
    """The nodes of our system that are not solo, that of the head first; or those of the system of the node ``of``."""
    member = member_of_this_process(of)
    (rows,) = member.ask(lambda number: Survey(number, ANY_NODE), 60.0)
    return [Node(member, row["node"], row["label"]) for row in rows]


def connect(
    name: str,
    timeout: float | None = 60.0,
    *,
    of: Node | None = None,
    at: str | None = None,
    key_file: str | Path | None = None,
) -> Channel:
    """A channel to a named place, whichever node of a system it is on.

    Args:
        of: A node of that system; by default it is our own.
        at, key_file: A node that was started by hand, whose system it is: it is attached to, as by `attach`, and this
            process stays a member until it ends.

    Raises:
        NameNotFound: There is no such place; says which there are.
        LaunchError: As for `attach`.
    """
    if at is not None:
        if key_file is None or of is not None:
            raise UsageError("connect(name, at=…) takes the key_file of that node, and no other node")
        from rmpi.places.guest import attach

        of = attach(at, key_file=key_file, timeout=timeout)
    return connect_on(member_of_this_process(of), ANY_NODE, name, timeout)


def unite(strategy: Strategy, places: Iterable[Command]) -> None:
    """Supervise places together, because they depend on each other; they run, and each has a ``restart=`` of its own.

        database = node.spawn("shop:database", restart=True)
        counter = node.spawn("shop:counter", restart=True)
        places.unite("rest_for_one", [database, counter])

    Args:
        strategy: Who is restarted when one has ended: ``"one_for_one"``, that one; ``"one_for_all"``, all of them;
            ``"rest_for_one"``, that one and those behind it. The others are asked to end first, last one first, and
            started again in this order. If one has ended for good, so have those that would be restarted with it.
        places: In the order in which they depend on each other.

    Raises:
        UsageError: One of them does not run, is in a group already, or its ``restart=`` restarts nothing.
    """
    members = [place.whose for place in places]
    if not members:
        raise UsageError("a group has one place at least")
    numbers = tuple(number for _, number, _ in members)
    members[0][0].ask(lambda asked: Unite(asked, strategy, numbers), 60.0)
