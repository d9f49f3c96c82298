"""One place, on this machine or another: the same program.

    python examples/places/one_place.py
    python examples/places/one_place.py alice@node1

Two lines from the place, one from the program, and the empty line that the message brings along:

    hello-world received: Hello
    hello-world sent: Hello World
    main received: Hello World

The other machine needs rmpi, and this directory under the same path.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rmpi import places


def main(argv: Sequence[str]) -> None:
    node = places.create_node(argv[0]) if argv else places.here()
    place = node.spawn("hello_world:hello_world")
    place.put("Hello")
    answer = place.get()
    place.wait()
    print("main received:", answer)


if __name__ == "__main__":
    main(sys.argv[1:])
