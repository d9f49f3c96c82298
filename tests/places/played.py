"""What the places of `test_system` do. A module of its own, because each place imports it."""

import logging
import os
import sys
import threading

from rmpi import places
from rmpi.places import membership


def echo(channel):
    for message in channel:
        channel.put(message)


def tell(channel, *args, **kwargs):
    channel.put((args, kwargs))


def describe(channel):
    """Where a place finds itself, each time somebody asks."""
    for name in channel:
        channel.put((os.getpid(), os.getcwd(), os.environ.get(name)))  # noqa: PTH109


def act(channel, deed):
    exec(deed, {"os": os, "sys": sys, "channel": channel})


def fail(_channel):
    raise ValueError("no luck")


def write(_channel):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    sys.stdout.write("an unfinished line")


def log(_channel):
    logging.getLogger("bank").info("this is too little")
    logging.getLogger("bank").warning("low on %s", "money")


def serve(channel):
    """Answers each of many clients."""
    while True:
        message, reply = channel.receive()
        reply.put((message, os.getpid()))


def ask(channel, server):
    """A client of a named place, which says when it has been answered, and then waits for ever."""
    server.put("first")
    channel.put(server.get())
    server.put("last")
    channel.get()


def visit(channel, names):
    """Asks each of the named places, wherever they are, and tells which have answered."""
    answered = []
    for name in names:
        place = places.connect(name)
        place.put(name)
        answered.append(place.get(timeout=20)[0])
    channel.put(answered)


def babble(channel, nonsense):
    """Says to its node what no place may say."""
    channel.put("ready")
    channel.get()
    membership.current()._control._socket.send(nonsense)
    channel.get()


def measure(channel, data):
    channel.put(len(data))


def pass_on(channel):
    """Puts to the channel that it gets, and on its node starts a place that does too."""
    node, there = channel.get()
    there.put(("put from", places.here().label))
    child = node.spawn(tell, there.label)
    channel.put(child.get())


def found(channel):
    """Makes a node, and places on it and here, and says what came of it."""
    node = places.create_node(name="made by a place")
    with node.spawn(echo) as far, places.here().spawn(echo, kind="thread") as near:
        far.put("far")
        near.put("near")
        answers = [far.get(timeout=20), near.get(timeout=20)]
    channel.put((answers, places.here().label, [each.label for each in places.nodes()]))
    channel.get()


def look_for(channel, name):
    try:
        channel.put(repr(places.connect(name)))
    except Exception as error:
        channel.put(f"{type(error).__name__}: {error}")


def try_to_shut_down(channel):
    try:
        places.shutdown()
    except Exception as error:
        channel.put(f"{type(error).__name__}: {error}")


def count_threads(channel):
    channel.put((os.getpid(), threading.current_thread().name))
    channel.get()


class Unwilling:
    """Cannot be unpickled."""

    def __reduce__(self):
        return refuse, ()


def refuse():
    raise RuntimeError("never here")


NUMBER = 3
