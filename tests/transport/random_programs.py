"""Random programs: ranks that exchange messages of every kind, by every way, and check each against an oracle.

What a seed decides is who sends what to whom, and with what the receivers ask for it; when things happen is the
machine's doing. Whoever runs one again may see it go another way.

    python random_programs.py SECONDS [SEED]

runs new ones, each on ranks that are joined in another way, with the extension built for it by the compiler's address
and undefined-behaviour sanitizers; ``make fuzz`` does. The first that fails ends it, with its seed.
"""

import importlib.util
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from rmpi.comm.status import ANY_SOURCE, ANY_TAG, Status
from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.wire.codec import encode_value, open_value
from rmpi.wire.frames import EAGER_LIMIT

# -- values ---------------------------------------------------------------------------------------------------

SIZES = (0, 1, 7, 2047, 2048, 16383, 16384, EAGER_LIMIT - 1, EAGER_LIMIT, EAGER_LIMIT + 1, 300_000)
POINT = np.dtype([("x", "<f8"), ("name", "S5"), ("inner", [("a", ">i2"), ("b", "?")])])
DTYPES = ("u1", "<i4", ">i4", "<f8", ">c16", "?", "S7", "U3", "M8[ns]", "m8[s]", POINT, "O")


class Plain:
    """An object with state."""

    def __init__(self, state):
        self.state = state

    def __eq__(self, other):
        return type(other) is Plain and same(other.state, self.state)

    __hash__ = None


def draw_array(choose):
    dtype = np.dtype(choose.choice(DTYPES))
    count = choose.choice(SIZES) // dtype.itemsize
    if dtype.hasobject:
        array = np.array([choose.choice([None, 1, "text"]) for _ in range(count % 50)], dtype)
    else:
        array = np.frombuffer(choose.randbytes(count * dtype.itemsize), np.uint8)
        array = array.view(dtype) if dtype.kind != "U" else np.array(["äöü"] * (count % 5000), dtype)
    return choose.choice(LAYOUTS)(array)


def in_two_dimensions(array):
    return array[: len(array) // 2 * 2].reshape(-1, 2)


LAYOUTS = (
    lambda array: array,
    in_two_dimensions,
    lambda array: np.asfortranarray(in_two_dimensions(array)),
    lambda array: in_two_dimensions(array)[:, 1],
    lambda array: array[::-1],
    lambda array: array[:1].reshape(()) if len(array) else array,
    lambda array: array[:0].reshape(0, 3),
    lambda array: array.copy().view(np.recarray) if array.dtype.names else array,
    lambda array: array[:4].reshape(2, 2).view(np.matrix) if len(array) >= 4 else array,
)

DRAWS = (
    lambda choose: choose.choice([None, True, False]),
    lambda choose: choose.choice([0, -1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 1 << 200]),
    lambda choose: choose.choice([0.0, -0.0, float("nan"), float("inf"), 5e-324, choose.random()]),
    lambda choose: choose.choice(["", "a", "\0", "ä", "🙂", "\ud800", "x\udfff🙂"]) * choose.choice((1, 3, 5000)),
    lambda choose: choose.randbytes(choose.choice(SIZES)),
    draw_array,
    draw_array,
    lambda choose: {"small": draw_array(choose), "list": [draw_array(choose) for _ in range(choose.randrange(4))]},
    lambda choose: [(np.arange(choose.choice((1, 400))), i) for i in range(choose.choice((1, 12)))],
    lambda choose: Plain({"deep": [Plain(choose.random()), draw_array(choose)]}),
    lambda choose: choose.choice([np.float64(1.5), 1j, (), [], {1, 2}, int, bytearray(b"x")]),
)


def draw_value(seed):
    choose = random.Random(seed)
    return choose.choice(DRAWS)(choose)


def by_the_long_way(value):
    """What arrives, if the codec is asked: NumPy's own pickles may change the byte order of an array."""
    encoded = encode_value(value)
    landing = open_value(encoded.metadata, encoded.nbytes)
    payload = b"".join(bytes(segment) for segment in encoded.segments)
    for view in landing.views:
        view[:], payload = payload[: view.nbytes], payload[view.nbytes :]
    return landing.value()


def same(one, other):
    """Whether two values are equal, with their types, layouts and the bits of their numbers."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        flags = ("c_contiguous", "f_contiguous")
        layout = one.dtype == other.dtype and one.shape == other.shape
        order = one.dtype.hasobject or not any(getattr(one.flags, f) for f in flags) or layout
        equal = one.tolist() == other.tolist() if one.dtype.hasobject else one.tobytes() == other.tobytes()
        return layout and order and equal
    if isinstance(one, float):
        return np.float64(one).tobytes() == np.float64(other).tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# -- random programs ------------------------------------------------------------------------------------------

PHASES = 3
TAGS = (0, 1, 2**63 - 1)


def plan(seed, size):
    """For each phase, who sends how many messages to whom with which tag: the order among them is the sender's."""
    choose = random.Random(seed)
    phases = []
    for _ in range(PHASES):
        count = choose.randrange(20, 60)
        phases.append([(choose.randrange(size), choose.randrange(size), choose.choice(TAGS)) for _ in range(count)])
    return phases


class Player:
    """One rank in a random program: what it has sent, and what it has received of each source and tag."""

    def __init__(self, comm, seed):
        self.comm = comm
        self.seed = seed
        self.choose = random.Random(f"{seed} {comm.rank}")
        self.sent = Counter()
        self.came = Counter()
        self.due = Counter()

    def value(self, source, dest, tag, number):
        return draw_value(f"{self.seed} {source} {dest} {tag} {number}")

    def send(self, dest, tag):
        number = self.sent[dest, tag]
        self.sent[dest, tag] += 1
        value = self.value(self.comm.rank, dest, tag, number)
        self.comm.send(value, dest, tag)
        if type(value) is np.ndarray and value.flags.writeable:
            value[...] = np.zeros((), value.dtype)  # when `send` returns, it may be changed

    def receive(self, timeouts=(None, None, 0, 20)):
        source, tag = self.choose.choice([key for key, count in self.due.items() if self.came[key] < count])
        expected = self.value(source, self.comm.rank, tag, self.came[source, tag])
        out = self.draw_out(expected)
        if out is None:
            asked = self.choose.choice([source, ANY_SOURCE]), self.choose.choice([tag, ANY_TAG])
        else:
            asked = source, tag
        status, timeout = Status(), self.choose.choice(timeouts)
        try:
            value = self.comm.recv(*asked, out=out, timeout=timeout, status=status)
        except DeadlineExceeded:
            return
        except UsageError:
            assert out is not None
            assert out.shape != expected.shape
            return
        self.check(value, status, out)

    def draw_out(self, expected):
        if type(expected) is not np.ndarray or expected.dtype.hasobject or self.choose.randrange(2):
            return None
        shape = (*expected.shape, 1) if self.choose.randrange(4) == 0 else expected.shape
        return np.empty(shape, expected.dtype, order=self.choose.choice("CF"))

    def check(self, value, status, out):
        source, tag = status.source, status.tag
        sent = self.value(source, self.comm.rank, tag, self.came[source, tag])
        expected = by_the_long_way(sent)
        self.came[source, tag] += 1
        assert same(value, expected), f"{value!r} came where {expected!r} was next from {source} with {tag}"
        encoded = encode_value(sent)
        if encoded.metadata[:1] != b"p":  # of how many parts a pickle is made is another matter
            assert status.nbytes == encoded.nbytes
        assert out is None or value is out
        if isinstance(value, np.ndarray) and source != self.comm.rank:
            assert value.flags.writeable
            value[...] = np.zeros((), value.dtype)  # it is the caller's own

    def play(self):
        for number, phase in enumerate(plan(self.seed, self.comm.size)):
            for source, dest, tag in phase:
                if dest == self.comm.rank:
                    self.due[source, tag] += 1
            for source, dest, tag in phase:
                if source == self.comm.rank:
                    self.send(dest, tag)
                if self.choose.randrange(3) == 0 and self.misses():
                    self.receive((0, 0.001, 0.02))  # what it waits for may be sent when others have got theirs
            total = self.comm.allreduce(np.arange(1000) + self.comm.rank)
            assert total[0] == sum(range(self.comm.size))
            assert self.comm.broadcast(("phase", number), root=number % self.comm.size) == ("phase", number)
        while self.misses():
            self.receive()
        self.comm.barrier()
        return sum(self.came.values())

    def misses(self):
        return any(self.came[key] < count for key, count in self.due.items())


# -- with sanitizers ----------------------------------------------------------------------------------------

HERE = Path(__file__).parent
EXTENSION = HERE.parents[1] / "rmpi" / "transport"
NAME = "rmpi.transport._ring"


def build(folder):
    """The extension, with sanitizers, in that folder."""
    library = folder / "_ring.so"
    sanitize = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    plain = ["-std=c11", "-D_GNU_SOURCE", "-shared", "-fPIC", f"-I{sysconfig.get_paths()['include']}"]
    subprocess.run(["gcc", *sanitize, *plain, *EXTENSION.glob("*.c"), "-o", library], check=True)
    return library


def run_sanitized(library, words):
    """This program once more, with what the sanitizers need; its exit status."""
    runtimes = [
        subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    settings = {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # an interpreter does not free everything at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that each object is a block of its own
        "RMPI_SANITIZED": str(library),
    }
    return subprocess.run([sys.executable, __file__, *words], env=os.environ | settings, check=False).returncode


def load(library):
    """Have everybody import that one."""
    spec = importlib.util.spec_from_file_location(NAME, library)
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def play_random_program(seed):
    """One program, on ranks that are joined in one of many ways."""
    from joined import fork_ranks, tcp_loopback

    from rmpi.transport.crank import SPIN

    choose = random.Random(f"ways {seed}")
    size = choose.choice((2, 3, 3, 4))
    ways = {
        "spin": choose.choice((0.0, SPIN, SPIN)),
        "crowded": choose.random() < 0.7,
        "neighbours": choose.choice((2, 1000, 1000)),
        "without": frozenset(rank for rank in range(size) if choose.random() < 0.1),
    }
    if choose.random() < 0.25:
        ways["sockets"] = tcp_loopback
    print(f"seed {seed}: {size} ranks", end="\r" if sys.stdout.isatty() else "\n", flush=True)
    received = fork_ranks(size, lambda comm: Player(comm, seed).play(), **ways)
    assert sum(received) == sum(map(len, plan(seed, size)))


def main(seconds, seed=None):
    library = os.environ.get("RMPI_SANITIZED")
    if library is None:
        with tempfile.TemporaryDirectory() as folder:
            return run_sanitized(build(Path(folder)), [seconds, *filter(None, [seed])])
    load(library)
    first = number = int(time.time()) if seed is None else int(seed)
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        play_random_program(number)
        number += 1
    print(f"\n{number - first} programs, from seed {first}: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
