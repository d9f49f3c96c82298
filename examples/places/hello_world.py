"""The first program: a node, a place on it, and a timer.

    python examples/places/hello_world.py

It starts a second node on this machine and a place there; a moment later it sends the place a message:

    hello-world received: Hello
    hello-world sent: Hello World
    message-router received: Hello World

The first two lines are the place's: what places write is shown where the program runs. An empty line follows the last
one, because the message brings the end of its line along.

The ancestor of this program greeted after 2 s, and ended after 6. Here it is a tenth of a second, and the program ends
when it is done.
"""

from __future__ import annotations

from rmpi import places


def hello_world(mailbox: places.Mailbox) -> None:
    """What runs in the place."""
    message = mailbox.get()
    print("hello-world received:", message)
    answer = f"{message} World\n"
    mailbox.put(answer)
    print("hello-world sent:", answer, end="")


def main() -> None:
    with places.create_node() as node:
        place = node.spawn("hello_world:hello_world")  # by name: see `help(node.spawn)` for functions of scripts

        def greet() -> None:
            place.put("Hello")
            answer = place.get()
            place.wait()  # all that it wrote was shown then, so our line is the last
            print("message-router received:", answer)

        places.MessageRouter(places.after(0.1, greet)).run()


if __name__ == "__main__":
    main()
