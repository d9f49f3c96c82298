"""Jobs that end well, and what ranks find in them: output, input, environment, arguments, ``__main__``, processes.

The `jobs` fixture checks after each test that no process, file or shared memory of its jobs is left.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import zipfile
from pathlib import Path

import pytest
from running import RMPI_RUN, Jobs, Terminal, eventually, memory, processes, state

# --- Ranks --------------------------------------------------------------------------------------------------

SUM = """
    import rmpi
    comm = rmpi.init()
    total = comm.allreduce(comm.rank)
    if comm.rank == comm.size - 1:
        print(comm.size, total, comm.hosts[0])
"""


@pytest.mark.parametrize("ranks", [1, 2, 7, 32])
def test_any_number_of_ranks(ranks: int, jobs: Jobs) -> None:
    done = jobs.run("-n", ranks, jobs.script(SUM))
    assert (done.code, done.said, done.out) == (0, "", f"{ranks} {ranks * (ranks - 1) // 2} localhost\n")


def test_one_rank_is_the_default_and_needs_no_launcher(jobs: Jobs) -> None:
    script = jobs.script(SUM)
    assert jobs.run(script).out == "1 0 localhost\n"
    plain = jobs.run(script, command=[sys.executable])
    assert (plain.code, plain.out.split()[:2]) == (0, ["1", "0"])


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "WORLD_SIZE"])
def test_a_rank_of_another_launcher_is_refused_and_not_taken_for_one_alone(variable: str, jobs: Jobs) -> None:
    script = jobs.script("import rmpi; print(rmpi.init().size)")
    done = jobs.run(script, command=[sys.executable], env={variable: "3"})
    assert done.code == 1
    assert f"{variable}=3 says that this process is one of 3 ranks" in done.err
    assert "rmpi-run -n 3" in done.err
    alone = jobs.run(script, command=[sys.executable], env={variable: "3", "RMPI_ALONE": "1"})
    assert (alone.code, alone.out) == (0, "1\n")


def test_under_another_launcher_our_own_ranks_are_ours(jobs: Jobs) -> None:
    done = jobs.run("-n", 2, jobs.script("import rmpi; print(rmpi.init().size)"), env={"WORLD_SIZE": "3"})
    assert (done.code, done.out) == (0, "2\n2\n")


def test_two_jobs_at_once_do_not_meet(jobs: Jobs) -> None:
    script = jobs.script(SUM)
    running = [jobs.start("-n", ranks, script) for ranks in (2, 3)]
    assert [job.wait().out for job in running] == ["2 1 localhost\n", "3 3 localhost\n"]


def test_nobody_listens_while_a_job_of_one_machine_runs(jobs: Jobs) -> None:
    script = jobs.script("import rmpi; c = rmpi.init(); c.allgather(bytes(100_000)); print('ready'); input()")
    job = jobs.start("-n", 2, script, stdin=subprocess.PIPE)
    job.until("ready", times=2)
    ours = {inode for pid in processes(job.mark) for inode in _sockets(pid)}
    assert ours
    assert not ours & _listening()
    job.end_input()
    job.wait()


def _sockets(pid: int) -> set[str]:
    names = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return {name[8:-1] for name in names if name.startswith("socket:[")}


def _listening() -> set[str]:
    tcp = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    unix = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    accepting = {fields[6] for fields in unix if int(fields[3], 16) & 0x10000}
    return {fields[9] for fields in tcp if fields[3] == "0A"} | accepting


@pytest.mark.slow
def test_one_job_after_another_leaves_nothing_behind_in_a_process(jobs: Jobs) -> None:
    """Ten jobs of one interpreter: as many descriptors and threads at the end as at the beginning."""
    script = jobs.script(
        """
        import os, sys, threading
        from launcher.cli import main
        def held():
            return sorted(os.listdir("/proc/self/fd")), threading.active_count()
        main(["-n", "2", "true"])
        before = held()
        codes = {main(["-n", "2", "true"]) for _ in range(9)}
        print(codes, held() == before)
        """
    )
    done = jobs.run(script, command=[sys.executable])
    assert (done.code, done.out, done.said) == (0, "{0} True\n", "")


# --- Output -------------------------------------------------------------------------------------------------


def test_lines_of_many_ranks_never_mix(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import os
        rank = os.environ["RMPI_RANK"]
        for i in range(3000):
            os.write(1 + i % 2, f"{rank}-{i}-".encode())
            os.write(1 + i % 2, f"{rank * (i % 50)}.\\n".encode())
        """
    )
    done = jobs.run("-n", 7, script)
    assert done.code == 0
    for text, parity in ((done.out, 0), (done.said, 1)):
        expected = {rank: [f"{rank}-{i}-{str(rank) * (i % 50)}." for i in range(parity, 3000, 2)] for rank in range(7)}
        lines = text.splitlines()
        assert {rank: [line for line in lines if line[0] == str(rank)] for rank in range(7)} == expected


def test_bytes_of_any_kind_pass_unharmed(jobs: Jobs) -> None:
    """A line of 5 MB, all bytes there are, and no newline at the end."""
    script = jobs.script(
        """
        import os, sys
        out = sys.stdout.buffer
        out.write(bytes(range(256)) + b"\\n" + b"x" * 5_000_000 + b"\\n" + "naïve ⚙".encode() + b"\\xff\\xfe end")
        """
    )
    expected = bytes(range(256)) + b"\n" + b"x" * 5_000_000 + b"\n" + "naïve ⚙".encode() + b"\xff\xfe end"
    done = jobs.run(script)
    assert (done.code, done.stderr) == (0, b"")
    assert done.stdout == expected
    several = jobs.run("-n", 2, "sh", "-c", f'[ $RMPI_RANK = 1 ] || exec "{sys.executable}" "{script}"')
    assert several.stdout == expected + b"\n"


def test_a_flood_waits_for_a_slow_reader_and_the_launcher_stays_small(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import os
        for _ in range(200):
            os.write(1, b"x" * 999_999 + b"\\n")
        """
    )
    reading, writing = os.pipe()
    job = jobs.start("-n", 1, script, stdout=writing)
    os.close(writing)
    eventually(lambda: any(map(_writes_in_vain, job.ranks())), "the rank waits for the reader")
    with os.fdopen(reading, "rb") as pipe:
        assert len(pipe.read(199_999_999)) == 199_999_999
        largest = memory(job.pid)
        assert pipe.read() == b"\n"
    assert job.wait().code == 0
    assert largest < 100_000_000


def test_a_rank_that_ends_while_nobody_reads_is_told_to_the_others(jobs: Jobs) -> None:
    """The others' end does not wait for the reader; the output does, and is complete."""
    script = jobs.script(
        """
        import os, sys, rmpi
        comm = rmpi.init()
        comm.barrier()
        if comm.rank == 1:
            sys.stdout.write("x" * 79_999 + "\\n")
            sys.stdout.flush()
            while True:
                sys.stdout.write("y" * 79 + "\\n")
        open(f"waiting", "w").close()
        try:
            comm.recv(1)
        except rmpi.RankFailed:
            open("told", "w").close()
            raise
        """
    )
    reading, writing = os.pipe()
    job = jobs.start("-n", 2, script, stdout=writing)
    os.close(writing)
    eventually((jobs.directory / "waiting").exists, "rank 0 waits")
    rank_1 = job.ranks()[1]
    eventually(lambda: _is_full(reading) and _writes_in_vain(rank_1), "nobody can write")
    os.kill(rank_1, signal.SIGKILL)
    eventually((jobs.directory / "told").exists, "rank 0 was told")
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read().startswith(b"x" * 79_999 + b"\n" + b"y")
    assert job.wait().code == 137


def _is_full(pipe: int) -> bool:
    waiting = int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
    return waiting == fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


def _writes_in_vain(pid: int) -> bool:
    """Whether it sleeps, and its standard output has no room."""
    try:
        output = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY)
    except FileNotFoundError:  # it was no rank, but a fork by which the spawner tries whether threads outlast one
        return False
    try:
        return state(pid) == "S" and not select.select([], [output], [], 0)[1]
    finally:
        os.close(output)


def test_the_last_output_of_a_killed_rank_is_kept(jobs: Jobs) -> None:
    script = jobs.script("import os; os.write(1, b'out ' * 10_000); os.write(2, b'err'); os.kill(os.getpid(), 9)")
    done = jobs.run("-n", 2, script)
    assert done.code == 137
    assert done.out == ("out " * 10_000 + "\n") * 2
    assert done.err.count("err\n") == 2


def test_lines_are_shown_as_they_are_written(jobs: Jobs) -> None:
    """Python's own print among them, into a pipe; and a prompt without a newline, of a rank alone."""
    job = jobs.start("-n", 2, "-c", "import sys; print('line'); sys.stdin.read()", stdin=subprocess.PIPE)
    job.until("line", times=2)
    job.end_input()
    assert job.wait().code == 0
    alone = jobs.start("-c", "print(input('name? '))", stdin=subprocess.PIPE)
    alone.until("name? ")
    alone.write(b"Ada\n")
    assert alone.wait().out == "name? Ada\n"


def test_labels(jobs: Jobs) -> None:
    done = jobs.run("-l", "-n", 2, "sh", "-c", "echo out; echo err >&2")
    assert done.lines == ["[0] out", "[1] out"]
    assert sorted(done.said.splitlines()) == ["[0] err", "[1] err"]


def test_on_a_terminal_lines_are_labelled_and_progress_is_drawn_and_wiped(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import os, sys, rmpi
        comm = rmpi.init()
        if comm.rank == 0:
            sys.stdout.write("\\r10 %\\r20 %")
            sys.stdout.flush()
            comm.barrier()
            comm.barrier()
            print("\\rdone")
        else:
            comm.barrier()
            print(os.environ["RMPI_TERMINAL"])
            comm.barrier()
        """
    )
    done = jobs.start("-n", 2, script, terminal=True).wait()
    assert done.code == 0
    assert "[0] 20 %" in done.out
    assert "[1] 80x24\r\n" in done.out
    assert done.out.endswith("[0] done\r\n")


def test_what_is_not_a_terminal_is_not_called_one(jobs: Jobs) -> None:
    done = jobs.run("-c", "import os; print(os.environ.get('RMPI_TERMINAL'))", env={"RMPI_TERMINAL": "99x9"})
    assert done.out == "None\n"


# --- Input --------------------------------------------------------------------------------------------------

READERS = """
    import hashlib, sys
    data = sys.stdin.buffer.read()
    print(len(data), hashlib.sha256(data).hexdigest()[:8])
"""


def test_standard_input_goes_to_rank_0_and_the_others_see_its_end(jobs: Jobs) -> None:
    import hashlib

    data = os.urandom(10_000_000)
    done = jobs.run("-n", 3, jobs.script(READERS), input=data)
    nothing = hashlib.sha256(b"").hexdigest()[:8]
    assert done.lines == [f"0 {nothing}"] * 2 + [f"10000000 {hashlib.sha256(data).hexdigest()[:8]}"]


def test_input_that_nobody_takes_keeps_nobody_waiting(jobs: Jobs) -> None:
    """Rank 0 ends early, or lives and does not read; either way the job ends when the ranks do."""
    for code in ("pass", "import os; os.close(0)", "import time; time.sleep(0.2)"):
        assert jobs.run("-n", 2, "-c", code, input=bytes(1_000_000)).code == 0


@pytest.mark.parametrize("redirection", ["</dev/null", "<&-", "<&- >&-", "<&- >&- 2>&-", "2>&-"])
def test_closed_streams(redirection: str, jobs: Jobs) -> None:
    script = jobs.script("import sys; data = sys.stdin.read(); open('read', 'a').write(f'{data!r}'); print('out')")
    done = jobs.start("-n", 2, script, command=["sh", "-c", f'exec "$0" "$@" {redirection}', *RMPI_RUN]).wait()
    assert done.code == 0
    assert (jobs.directory / "read").read_text() == "''''"
    assert done.out == ("" if ">&- " in redirection or redirection.endswith(" >&-") else "out\nout\n")


def test_a_terminal_types_to_rank_0(jobs: Jobs) -> None:
    job = jobs.start("-c", "print('hello', input('name? '))", terminal=True)
    job.until("name? ")
    assert isinstance(job, Terminal)
    job.write(b"Ada\n")
    assert "hello Ada" in job.wait().out


# --- Surroundings -------------------------------------------------------------------------------------------


def test_arguments_and_paths_of_any_characters(jobs: Jobs) -> None:
    awkward = ["a b", "it's", '"q"', "$HOME", "`x`", "", "-n", "--", "naïve ⚙", "line\nline", "\udcff"]
    name = "a dir/it's a $cript ⚙.py"
    script = jobs.script("import sys, os; print(ascii(sys.argv), __file__)", name)
    assert jobs.run("-n", 1, name, *awkward).out == f"{[name, *awkward]!a} {script}\n"
    assert jobs.run("-c", "import sys; print(ascii(sys.argv))", *awkward).out == f"{['-c', *awkward]!a}\n"


def test_a_file_name_that_is_no_text(jobs: Jobs) -> None:
    path = os.fsencode(jobs.directory) + b"/\xff.py"
    Path(os.fsdecode(path)).write_text("import sys; print(ascii(sys.argv[0]))")
    assert jobs.run("-n", 2, os.fsdecode(path)).out.count("udcff.py") == 2


def test_a_command_line_as_long_as_the_system_allows(jobs: Jobs) -> None:
    many = [f"a-rather-long-file-name-{number:06}.jpg" for number in range(10_000)]
    done = jobs.run("-n", 2, "-c", "import sys; print(len(sys.argv), sys.argv[-1])", *many)
    assert done.lines == [f"10001 {many[-1]}"] * 2


def test_environment(jobs: Jobs) -> None:
    awkward = " a 'quoted' \"value\" $HOME\nof two lines, naïve ⚙ \udcff=1 "
    code = "import os; print(ascii([os.environ.get(n) for n in ('A', 'B', 'C', 'RMPI_RANK', 'RMPI_SIZE')]))"
    done = jobs.run("-n", 1, "-x", f"A={awkward}", "-x", "B=", "-c", code, env={"A": "theirs", "C": "inherited"})
    assert done.out == ascii([awkward, "", "inherited", "0", "1"]) + "\n"


def test_directory(jobs: Jobs) -> None:
    there = jobs.directory / "some where"
    jobs.script("import os, sys; print(os.getcwd(), sys.path[0])", "some where/script.py")
    for directory in (there, "some where"):
        assert jobs.run("--wdir", directory, "script.py").out == f"{there} {there}\n"
    assert jobs.run("pwd").out == f"{jobs.directory}\n"


def test_a_relative_pythonpath_means_what_it_means_to_python(jobs: Jobs) -> None:
    jobs.script("name = 'found'", "src/my_module.py")
    done = jobs.run(jobs.script("import my_module; print(my_module.name)"), env={"PYTHONPATH": "src"})
    assert (done.code, done.out) == (0, "found\n")


# --- Programs -----------------------------------------------------------------------------------------------

SHOW_MAIN = "import sys; print(__name__, sys.argv[1:], sys.path[0]); import neighbour\n"


def test_modules_directories_and_archives(jobs: Jobs) -> None:
    jobs.script(SHOW_MAIN, "package/__main__.py")
    jobs.script("print('neighbour')", "package/neighbour.py")
    jobs.script("print('neighbour')", "neighbour.py")
    with zipfile.ZipFile(jobs.directory / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", SHOW_MAIN)
        archive.writestr("neighbour.py", "print('neighbour')")
    here = jobs.directory
    for words, first in (
        (["package"], here / "package"),
        (["app.pyz"], here / "app.pyz"),
        (["-m", "package"], here),
    ):
        done = jobs.run(*words, "x", "y")
        assert (done.code, done.said) == (0, "")
        assert done.out == f"__main__ ['x', 'y'] {first}\nneighbour\n"


def test_a_module_that_does_not_exist(jobs: Jobs) -> None:
    done = jobs.run("-n", 2, "-m", "no_such_module")
    assert done.code == 1
    assert done.err.count("No module named no_such_module") == 2


def test_commands(jobs: Jobs) -> None:
    """Any program; and Python, which finds its communicator through the socket that it inherits."""
    script = jobs.script(SUM)
    assert jobs.run("-n", 2, "echo", "a  b", "$HOME").lines == ["a  b $HOME"] * 2
    assert jobs.run("-n", 2, "sh", "-c", "exit $RMPI_RANK").code == 1
    assert jobs.run("-n", 3, sys.executable, script).out == "3 3 localhost\n"
    assert jobs.run("-n", 3, "sh", "-c", f"'{sys.executable}' '{script}'; true").out == "3 3 localhost\n"


def test_a_command_that_is_python_fails_like_a_script(jobs: Jobs) -> None:
    """Although it leaves before its exit status is known, so that rank 0 learns first that it has left."""
    script = jobs.script("import rmpi, sys\ncomm = rmpi.init()\nif comm.rank == 1: sys.exit(3)\ncomm.recv(1)")
    assert jobs.run("-n", 2, sys.executable, script).code == 3
    script = jobs.script("import rmpi, sys\ncomm = rmpi.init()\nif comm.rank == 1: raise KeyError(3)\ncomm.recv(1)")
    done = jobs.run("-n", 2, sys.executable, script)
    assert (done.code, done.err.splitlines()[-1]) == (1, "KeyError: 3")


def test_a_pipeline_in_a_command_ends_as_in_a_shell(jobs: Jobs) -> None:
    """That is: without complaints about broken pipes, for SIGPIPE has its usual meaning."""
    done = jobs.run("-n", 1, "sh", "-c", "yes | head -1")
    assert (done.code, done.out, done.err) == (0, "y\n", "")


def test_main_is_the_script_as_for_plain_python(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import atexit, os, sys, threading
        shown = [__name__, __file__, sys.argv, sys.path[0], __builtins__.__name__, __spec__, __doc__,
                 sys.modules["__main__"].shown is shown if "shown" in globals() else None, sys.flags, __package__]
        print(shown)
        atexit.register(print, "at exit")
        threading.Thread(target=lambda: (threading.main_thread().join(), print("thread"))).start()
        """
    )
    plain = subprocess.run([sys.executable, script, "x"], capture_output=True, text=True, check=True)
    assert jobs.run(script, "x").out == plain.stdout


def test_modules_beside_the_script_do_not_break_the_spawner(jobs: Jobs) -> None:
    for name in ("socket", "select", "queue", "typing", "rmpi", "launcher"):
        jobs.script("raise RuntimeError('shadowed')", f"{name}.py")
    done = jobs.run("-n", 2, "-c", "print('fine')", command=[sys.executable, "-P", "-m", "launcher"])
    assert (done.code, done.out) == (0, "fine\nfine\n")


def test_processes_that_a_rank_starts_are_not_the_rank(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import multiprocessing, os, subprocess, sys, rmpi

        class Point:
            def __init__(self, x):
                self.x = x

        def double(point):
            return Point(2 * point.x)

        if __name__ == "__main__":
            comm = rmpi.init()
            comm.barrier()
            for method in "fork", "spawn":
                with multiprocessing.get_context(method).Pool(2) as pool:
                    print(method, [point.x for point in pool.map(double, [Point(1), Point(2)])])
            alone = subprocess.run([sys.executable, "-c", "import rmpi; print('alone', rmpi.init().size)"], check=True)
            if os.fork() == 0:
                for use in (comm.barrier, rmpi.init):
                    try:
                        use()
                    except rmpi.ChannelClosed as error:
                        print(error)
                os._exit(0)
            os.wait()
            print("sum", comm.allreduce(1))
        """
    )
    done = jobs.run("-n", 2, script)
    assert (done.code, done.said) == (0, "")
    assert done.lines == sorted(
        2
        * [
            "fork [2, 4]",
            "spawn [2, 4]",
            "alone 1",
            "this process was forked from a rank; only the rank itself may communicate",
            "this process was forked from a rank; only the rank itself may communicate",
            "sum 2",
        ]
    )


def test_a_fork_from_before_init_cannot_take_the_ranks_place_nor_crash_in_its_name(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import os, rmpi
        if os.fork() == 0:
            try:
                rmpi.init()
            except rmpi.LaunchError as error:
                print(error)
            raise ValueError("in the child")
        print(os.waitstatus_to_exitcode(os.wait()[1]), rmpi.init().allreduce(1))
        """
    )
    done = jobs.run("-n", 2, script)
    assert done.code == 0
    assert done.out.count("1 2\n") == 2
    assert done.out.count("names a socket that this process does not have") == 2
    assert done.said.count("ValueError: in the child") == 2


def test_a_job_inside_a_job(jobs: Jobs) -> None:
    script = jobs.script(
        f"""
        import subprocess, rmpi
        comm = rmpi.init()
        inner = subprocess.run({[*RMPI_RUN, "-n", "2", "-c", "import rmpi; print(rmpi.init().allreduce(10))"]},
                               capture_output=True, text=True)
        print(inner.returncode, inner.stdout.split(), comm.allreduce(1))
        """
    )
    done = jobs.run("-n", 2, script)
    assert (done.code, done.out) == (0, "0 ['20', '20'] 2\n" * 2)


def test_threads_of_a_crashed_rank_do_not_keep_the_job_alive(jobs: Jobs) -> None:
    """One waits for a message of a rank that waits for the crashed one, so nobody would ever end."""
    script = jobs.script(
        """
        import threading, rmpi
        comm = rmpi.init()
        if comm.rank == 1:
            threading.Thread(target=comm.recv, args=(0,)).start()
            raise ValueError("alone")
        comm.recv(1)
        """
    )
    done = jobs.run("-n", 2, "--kill-grace", 0.3, script)
    assert done.code == 1
    assert done.err.splitlines()[-1] == "ValueError: alone"


def test_few_file_descriptors(jobs: Jobs) -> None:
    """A low limit is raised as far as the system allows; beyond, nothing is started."""
    script = jobs.script("import rmpi; print(rmpi.init().allreduce(1))")
    command = ["sh", "-c", 'ulimit -$1 $2; shift 2; exec "$@"', "sh"]
    done = jobs.run("-n", 8, script, command=[*command, "Sn", "64", *RMPI_RUN])
    assert (done.code, done.out) == (0, "8\n" * 8)
    done = jobs.run("-n", 8, script, command=[*command, "n", "64", *RMPI_RUN])
    assert (done.code, done.said) == (
        125,
        "rmpi-run: localhost: 8 ranks here need 128 file descriptors, and 64 is the limit (ulimit -Hn)\n",
    )
