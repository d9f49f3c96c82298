"""Nodes and places as their users hold them.

A handle is a name for something that runs elsewhere: it may be copied, and sent to other places, where it means the
same. What it does is asked of the head (`Member.ask`); what is said to a place goes there directly.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.places import membership
from rmpi.places.channel import Address, Channel
from rmpi.places.hosting import check_target
from rmpi.places.member import Member
from rmpi.places.parcels import Call
from rmpi.places.supervisor import Policy, policy_of
from rmpi.places.system import running_system
from rmpi.places.system_messages import LOCAL, EndNode, Find, Kill, PlaceGone, Spawn, Survey
from rmpi.transport.peers import fresh
from rmpi.wire.frames import CONTROL_LIMIT

Kind = Literal["process", "thread"]
Output = Literal["forward", "label", "capture", "discard"]
Route = Literal["auto", "direct", "relay"]

PARCEL_LIMIT = CONTROL_LIMIT - (1 << 20)
"""Bytes of a call with its arguments, which nodes pass on in one piece; what is larger goes over the channel."""


@dataclass(frozen=True, slots=True)
class PlaceStatus:
    """A place at one moment.

    Attributes:
        label: What errors call it: ``"bank on host2"``.
        name: By which it is found; "" if it has none.
        kind: ``"process"``, ``"thread"`` or ``"command"``; ``"mailbox"``: what `open_mailbox` has made there.
        state: ``"starting"``, ``"up"``, or ``"down"``: it has ended and is about to be restarted.
        pid: Of its process; 0 while there is none, and of what shares one with others: a thread, a mailbox.
        restarts: How often it was restarted.
        stopped: Seconds since its process was stopped (SIGSTOP), as far as its node has noticed; None: it is not. What
            is stopped neither ends nor goes on by itself, and is not lost: whoever cannot wait may kill it.
    """

    label: str
    name: str
    kind: str
    state: str
    pid: int
    restarts: int
    stopped: float | None = None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node at one moment.

    Attributes:
        label: What it is called.
        host: What its machine calls itself.
        state: ``"booting"``, ``"up"``, ``"down"`` (lost, and about to be started again), ``"ending"`` or ``"gone"``.
        pid: Of its process.
        places: Those that have not ended.
    """

    label: str
    host: str
    state: str
    pid: int
    places: tuple[PlaceStatus, ...]


class Node:
    """A node of a system. `create_node` makes one, `here` is the one that this process runs on.

        with places.create_node("host2") as node:
            echo = node.spawn("mymodule:echo", name="echo")

    At the end of a ``with`` it is shut down. Two handles are equal if they name the same node.
    """

    def __init__(self, member: Member, number: int, label: str) -> None:
        """For `create_node`, `here` and `nodes`."""
        self._member = member
        self._number = number
        self.label = label

    @property
    def member(self) -> Member:
        """This process in the system of the node."""
        return self._member

    # ------------------------------------------------------------------------------- starting places

    def spawn(
        self,
        target: str | Callable[..., object],
        *args: Any,
        name: str = "",
        restart: object = None,
        kind: Kind = "process",
        environment: Mapping[str, str] | None = None,
        directory: str | Path | None = None,
        timeout: float | None = 60.0,
        **kwargs: Any,
    ) -> Place:
        """Start a place on this node, which calls ``target(mailbox, *args, **kwargs)``; return when it has begun to.

        Args:
            target: ``"module:function"``, imported there from where we would import it, or a function. A function of a
                module travels by name; one of a script or notebook, a nested one or a lambda by value, for which
                ``cloudpickle`` must be installed (``pip install 'rmpi[notebook]'``).
            args, kwargs: Pickled, channels and nodes included; 15 MiB at most.
            name: By which others find it (`Node.connect`); one of a kind on a node. "": it has none.
            restart: What follows when it ends: None for nothing, True, a function to be called instead, or
                `restart_every`.
            kind: ``"process"``, or ``"thread"`` of a process that all threads of this node share: cheaper to start,
                and it cannot be killed.
            environment: Variables for it besides those of its node.
            directory: Where it starts; by default where its node did.
            timeout: Seconds until it must have begun.

        Raises:
            RemoteError: It could not begin: the target, or what it imports, was not found or raised. The text is the
                traceback.
            UsageError: The arguments cannot be pickled, the name is taken, or ``target`` names nothing.
            LaunchError: There is no such directory.
            PeerLost: The node is gone, or the place ended before it began.
            DeadlineExceeded: It has not begun in time; it is killed.
        """
        if isinstance(target, str):
            check_target(target)
        elif not callable(target):
            raise UsageError(f"spawn a function or 'module:function', not {target!r}")
        _check_kind(kind)
        call = Call.of(target, args, kwargs, [entry or str(Path.cwd()) for entry in sys.path])
        parcel = call.to_bytes()
        if len(parcel) > PARCEL_LIMIT:
            raise UsageError(
                f"the call is {len(parcel) >> 20} MiB pickled, 15 are the most: send large arguments by put()"
            )
        short = target.partition(":")[2] if isinstance(target, str) else getattr(target, "__qualname__", "place")
        return self._spawn(
            name, kind, (short,), parcel, policy_of(restart), environment, directory, timeout, self._member.new_box()
        )

    def spawn_command(
        self,
        argv: Sequence[str],
        *,
        name: str = "",
        restart: object = None,
        environment: Mapping[str, str] | None = None,
        directory: str | Path | None = None,
        timeout: float | None = 60.0,
    ) -> Command:
        """Start any program on this node: ``argv``, without a shell. Its output goes where that of places goes.

        Args, errors: As for `spawn`; `LaunchError` if there is no such program there.
        """
        words = tuple(map(str, argv)) if not isinstance(argv, str) else ()
        if not words or not words[0]:
            raise UsageError(f"a command is a list of words, such as ['sleep', '5'], not {argv!r}")
        for word in words:
            check_text("a word of a command", word)
        policy = policy_of(restart)
        number, label = self._ask_for_place(name, "command", words, b"", policy, environment, directory, timeout, 0)
        return Command(self._member, number, self, name, label, policy)

    def _spawn(
        self,
        name: str,
        kind: Kind,
        argv: tuple[str, ...],
        parcel: bytes,
        policy: Policy,
        environment: Mapping[str, str] | None,
        directory: str | Path | None,
        timeout: float | None,
        box: int,
    ) -> Place:
        number, label = self._ask_for_place(name, kind, argv, parcel, policy, environment, directory, timeout, box)
        return Place(self._member, number, self, name, label, policy, box)

    def _ask_for_place(
        self,
        name: str,
        kind: str,
        argv: tuple[str, ...],
        parcel: bytes,
        policy: Policy,
        environment: Mapping[str, str] | None,
        directory: str | Path | None,
        timeout: float | None,
        box: int,
    ) -> tuple[int, str]:
        check_text("name", name)
        variables = checked_environment(environment)

        def order(number: int) -> Spawn:
            return Spawn(
                number,
                self._number,
                name,
                kind,
                argv,
                parcel,
                box,
                policy.rule.to_plain(),
                variables,
                str(Path(directory).absolute()) if directory else "",
                logging.getLogger().getEffectiveLevel(),
            )

        place, label, pid = self._member.ask(order, timeout, f"starting {name or argv[0]} on {self.label}")
        self._member.fate(place).begins(pid)
        return place, label

    # ---------------------------------------------------------------------------------- finding

    def connect(self, name: str, timeout: float | None = 60.0) -> Channel:
        """A channel to the mailbox of a named place of this node. It follows the place when that is restarted.

        Raises:
            NameNotFound: There is no such place here; says which there are.
        """
        return connect_on(self._member, self._number, name, timeout)

    def captured(self) -> list[str]:
        """The lines that its places have written, if it was created with ``output="capture"``: the last 10,000.

        Raises:
            UsageError: Not this process is the head of the system, but the one that started it.
        """
        system = running_system()
        if system is None or system.member is not self._member:
            raise UsageError("what places have written is captured in the program whose system it is")
        return system.captured(self._number)

    def status(self) -> NodeStatus:
        """What runs here at this moment."""
        (rows,) = self._member.ask(lambda number: Survey(number, self._number), 60.0)
        node, *places = rows
        return NodeStatus(
            node["label"],
            node["host"],
            node["state"],
            node["pid"],
            tuple(PlaceStatus(**{key: value for key, value in each.items() if key != "place"}) for each in places),
        )

    # ------------------------------------------------------------------------------------ ending

    def shutdown(self, grace: float = 2.0, timeout: float | None = 30.0) -> None:
        """End the node and all its places: SIGTERM first, SIGKILL to what is left after ``grace`` seconds.

        Returns when nothing of it is left; again does nothing.

        Raises:
            UsageError: It is the node of the program itself, which ends with that.
        """
        self._end(True, grace, timeout)

    def kill(self, timeout: float | None = 30.0) -> None:
        """The same without asking first."""
        self._end(False, 0.0, timeout)

    def _end(self, graceful: bool, grace: float, timeout: float | None) -> None:
        self._member.ask(
            lambda number: EndNode(number, self._number, graceful, float(grace)), timeout, f"ending {self.label}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._number != LOCAL:
            self.shutdown()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and (other._member.system, other._number) == (self._member.system, self._number)

    def __hash__(self) -> int:
        return hash((self._member.system, self._number))

    def __repr__(self) -> str:
        return f"<Node {self.label}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _node_again, (self._member.system, self._number, self.label)


class Command:
    """A program that runs on a node, or a place: what both have.

    Attributes:
        node: Where.
        name: By which it is found; "" if it has none.
    """

    def __init__(self, member: Member, number: int, node: Node, name: str, label: str, policy: Policy) -> None:
        """For `Node.spawn` and `Node.spawn_command`."""
        self._place_member = member
        self._number = number
        self.node = node
        self.name = name
        self._label = label
        self._fate = member.fate(number)
        if policy.instead is not None or policy.on_final_fail is not None:
            threading.Thread(
                target=self._follow_policy, args=(policy,), name=f"rmpi follows {label}", daemon=True
            ).start()

    @property
    def label(self) -> str:
        """What errors call it: ``"bank on host2"``."""
        return self._label

    @property
    def whose(self) -> tuple[Member, int, str]:
        """By which membership of this process it is known, its number in that system, and its label."""
        return self._place_member, self._number, self._label

    @property
    def pid(self) -> int:
        """Of its process; 0 while there is none. As far as it was heard."""
        self._place_member.endpoint.progress()
        return self._fate.pid

    @property
    def restarts(self) -> int:
        """How often it was restarted. As far as it was heard."""
        self._place_member.endpoint.progress()
        return self._fate.restarts

    @property
    def alive(self) -> bool:
        """Whether it has not ended for good. As far as it was heard."""
        self._place_member.endpoint.progress()
        return not self._fate.gone.done

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended for good and all that it wrote was shown.

        Returns:
            Its exit status; minus the signal, if that killed it.

        Raises:
            DeadlineExceeded: It had not after ``timeout`` seconds.
        """
        fate = self._fate
        if not self._place_member.endpoint.watch((fate.over,), Deadline.after(timeout)):  # others may wait for it too
            raise DeadlineExceeded(f"{self.label} had not ended after {timeout:g} s")
        if fate.over.error is not None:
            raise fresh(fate.over.error)
        assert isinstance(fate.last, PlaceGone)
        return fate.last.status

    def terminate(self) -> None:
        """Ask it to end (SIGTERM; a thread's mailbox is closed). It is not restarted. Returns at once."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it (SIGKILL); a thread, which cannot be killed, is asked to end. It is not restarted. Returns at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, which: int) -> None:
        self._place_member.ask(lambda number: Kill(number, self._number, int(which)), 60.0)

    def _follow_policy(self, policy: Policy) -> None:
        """Call what is to be called here when it has ended. In a thread of its own."""
        fate = self._fate
        try:
            self._place_member.endpoint.watch((fate.gone,))
        except Exception:  # this process leaves the system
            return
        function = getattr(policy, fate.last.then, None) if isinstance(fate.last, PlaceGone) else None
        if function is not None:
            try:
                function()
            except Exception:
                logging.getLogger("rmpi.places").exception("what was to be called after the end of %s", self.label)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()
        self.wait()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label}>"


class Place(Channel, Command):
    """A place that was spawned: what is put here comes to its mailbox, and what it puts there comes here.

        echo = node.spawn("mymodule:echo")
        echo.put("Hello")
        print(echo.get(timeout=5))
        status = echo.wait()

    It is restarted, or not, as was said when it was spawned; as a channel it goes on with the next one (see `Channel`).
    Sent to another place it arrives as a `Channel`. At the end of a ``with`` it is terminated.
    """

    def __init__(
        self, member: Member, number: int, node: Node, name: str, label: str, policy: Policy, box: int
    ) -> None:
        """For `Node.spawn`."""
        Command.__init__(self, member, number, node, name, label, policy)
        Channel.__init__(self, member, place_address(member, number, label), box=box, announces=True)

    def __exit__(self, *_: object) -> None:
        self.terminate()
        self.wait()


def place_address(member: Member, number: int, label: str) -> Address:
    """Where the mailbox of a place is, wherever that runs."""
    return Address(member.system, number, 0, member.inbox_of(number), label)


def connect_on(member: Member, node: int, name: str, timeout: float | None) -> Channel:
    """A channel to a named place of one node, or of any."""
    number, label = member.ask(lambda asked: Find(asked, node, name), timeout, f"looking for {name!r}")
    return Channel(member, place_address(member, number, label))


def _node_again(system: int, number: int, label: str) -> Node:
    """A handle that has come from another place."""
    member = membership.member_of(system)
    assert isinstance(member, Member)
    return Node(member, number, label)


def check_text(what: str, value: object) -> None:
    """Whether it can be a name, or a word of a command line.

    Raises:
        UsageError: It cannot.
    """
    if not isinstance(value, str) or "\0" in value:
        raise UsageError(f"{what} must be a string without null characters, not {value!r}")


def checked_environment(environment: Mapping[str, str] | None) -> dict[str, str]:
    """Variables for a process.

    Raises:
        UsageError: One of them cannot be.
    """
    variables = dict(environment or {})
    for name, value in variables.items():
        check_text("the name of a variable", name)
        check_text(f"the variable {name}", value)
        if not name or "=" in name:
            raise UsageError(f"{name!r} cannot be the name of a variable")
    return variables


def _check_kind(kind: str) -> None:
    if kind not in ("process", "thread"):
        raise UsageError(f"kind must be 'process' or 'thread', not {kind!r}")
