"""A value, written as Python writes it, and shown although its line has no end.

    python examples/places/write_flush.py

    'Hello World'

What a place has written is shown line by line, and the rest of its last line when it ends.
"""

from __future__ import annotations

from rmpi import places


def writer(_mailbox: places.Mailbox) -> None:
    places.write_flush("Hello World")


def main() -> None:
    places.here().spawn("write_flush:writer").wait()


if __name__ == "__main__":
    main()
