"""Keys of all kinds, and which of them are equal."""

from __future__ import annotations

import datetime
import uuid
from collections import namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from fractions import Fraction
from pathlib import PurePosixPath
from zoneinfo import ZoneInfo

import numpy as np


class Colour(Enum):
    RED = "red"
    GREEN = 2


class Number(IntEnum):
    ONE = 1


class Name(StrEnum):
    TEA = "tea"


class Access(Flag):
    READ = 1
    WRITE = 2


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    note: str = field(default="", compare=False)


Pair = namedtuple("Pair", "left right")

NOON = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)

EQUAL = [
    (1, 1.0, True, 1 + 0j, Fraction(1), Decimal(1), np.int64(1), np.uint8(1), np.float32(1), np.True_, Number.ONE),
    (0, -0.0, 0.0, False, np.float64(0)),
    (10**30, Fraction(10**30), Decimal(10**30)),
    (0.5, Fraction(1, 2), Decimal("0.50"), np.float16(0.5)),
    (float("inf"), Decimal("inf"), np.float32("inf")),
    ("tea", np.str_("tea"), Name.TEA),
    (b"tea", np.bytes_(b"tea")),
    ((1, "a"), (1.0, "a"), Pair(True, "a"), (np.int32(1), np.str_("a"))),
    (frozenset([1, "a"]), frozenset(["a", 1.0])),
    (Point(1, 2), Point(1.0, 2.0, "there")),
    (NOON, NOON.astimezone(ZoneInfo("Asia/Tokyo"))),
    (datetime.time(12, tzinfo=datetime.UTC), datetime.time(14, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))),
    (datetime.timedelta(days=1), datetime.timedelta(hours=24)),
    (Access.READ | Access.WRITE, Access.WRITE | Access.READ),
]

OF_ALL_KINDS = [
    *(some[0] for some in EQUAL),
    None,
    "",
    b"",
    (),
    ((),),
    frozenset(),
    "\ud800",
    Colour.RED,
    Colour.GREEN,
    Access.READ,
    NOON.replace(tzinfo=None),
    datetime.date(2026, 6, 1),
    datetime.time(12),
    uuid.UUID(int=7),
    PurePosixPath("/tmp/a"),
]
