"""temporary"""

from typing import Any

_members: dict[int, Any] = {}


def register(member: Any) -> None:
    _members[member.system] = member


def unregister(member: Any) -> None:
    _members.pop(member.system, None)


def member_of(system: int) -> Any:
    return _members[system]


def current() -> Any:
    return next(iter(_members.values()), None)
