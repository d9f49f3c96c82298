"""The ring itself, `ring.h`, between two threads in C, and its constants.

`ring_threads.c` says what is done and how it is run by hand; for hours, with other numbers of messages and seeds:

    cc -std=c11 -O2 -pthread -D_GNU_SOURCE -I rmpi/transport tests/transport/ring_threads.c -o ring_threads
    for seed in $(seq 1000); do ./ring_threads 10000000 $seed 16384 || break; done
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from rmpi.transport.media import why_no_shm

HERE = Path(__file__).parent
PROGRAM = HERE / "ring_threads.c"
HEADERS = HERE.parents[1] / "rmpi" / "transport"

# ThreadSanitizer does not model fences; they are executed all the same. It checks what it knows of, and that is what
# it is here for: that every byte is read after it was written, and overwritten after it was read. Both follow from
# release and acquire of the positions alone; the fences order flags, which are atomic.
BUILDS = {"plain": ["-O2"], "thread sanitizer": ["-O1", "-g", "-fsanitize=thread"]}


@pytest.fixture(scope="module", params=BUILDS, ids=lambda build: build.replace(" ", "-"))
def program(request, tmp_path_factory):
    """The compiled program, and by how much it is slower than it could be."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("ring") / "ring_threads"
    flags = BUILDS[request.param]
    command = [
        compiler,
        "-std=c11",
        "-Wall",
        *flags,
        "-pthread",
        "-D_GNU_SOURCE",
        f"-I{HEADERS}",
        PROGRAM,
        "-o",
        target,
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "-fsanitize=thread" in flags and (built.returncode or run(target, 1, 1, 16384).returncode):
        pytest.skip("no thread sanitizer for this compiler, or on this machine")
    assert built.returncode == 0, built.stderr
    return target, 1 if request.param == "plain" else 10


def run(target, *arguments):
    return subprocess.run([target, *map(str, arguments)], capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [16 << 10, 64 << 10])
def test_every_byte_comes_once_and_in_order(program, capacity):
    target, slower = program
    done = run(target, 600_000 // slower, capacity, capacity)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_no_wake_up_is_lost(program):
    """Both sides sleep all the time."""
    target, slower = program
    done = run(target, 80_000 // slower, 1, 16 << 10, "together")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[4]) > 50, "hardly anybody slept"


@pytest.mark.skipif(why_no_shm() is not None, reason=str(why_no_shm()))
def test_the_extension_has_the_constants_of_the_modules():
    from rmpi.transport import _ring, incoming, peers
    from rmpi.wire import codec, frames

    theirs = {
        name: vars(module)[name]
        for module in (incoming, peers, codec, frames)
        for name in CONSTANTS
        if name in vars(module)
    }
    ours = {name: getattr(_ring, name) for name in CONSTANTS if hasattr(_ring, name)}
    assert ours
    assert ours == {name: theirs[name] for name in ours}


CONSTANTS = ("CHUNK", "CREDIT", "CREDIT_STEP", "EAGER_LIMIT", "FRAME_COST", "OUT_OF_BAND", "VERSION")
