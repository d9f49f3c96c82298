"""Which way data goes between hosts: jobs on two "hosts", both this machine, by an agent that runs what it is told."""

from __future__ import annotations

import pytest
from running import Done, Jobs

import rmpi

NOWHERE = "192.0.2.1"
"""An address that no machine has (RFC 5737), so nobody can listen there, as behind address translation."""

SHOWS = """
import rmpi
comm = rmpi.init()
comm.sendrecv(0, 1 - comm.rank)
print(comm._endpoint.media()[comm._members[1 - comm.rank]])
"""


def on_two_hosts(jobs: Jobs, *words: object, nowhere: str = "") -> Done:
    """A job on hosta and hostb, of which those in ``nowhere`` say that they were reached at that address."""
    agent = jobs.script(
        f'case "{nowhere}" in *$1*) at={NOWHERE};; *) at=127.0.0.1;; esac; shift\n'
        'SSH_CONNECTION="127.0.0.1 1 $at 2" exec sh -c "$*"',
        "agent.sh",
    )
    return jobs.run("--rsh-agent", f"sh {agent}", "-H", "hosta:1,hostb:1", *words)


def media(done: Done) -> set[str]:
    return set(done.out.split())


def test_all_data_may_go_through_the_sessions(jobs: Jobs) -> None:
    done = on_two_hosts(jobs, "--route", "relay", "-v", "-c", SHOWS)
    assert media(done) == {"relay"}
    assert done.err.count("hosta and hostb: their data goes through the ssh sessions, which is slower\n") == 1


def test_info_shows_what_is_relayed(jobs: Jobs) -> None:
    out = on_two_hosts(jobs, "--route", "relay", "--info", "-v").out
    assert out.endswith("  hosta  hosta  (one rank)\n  hosta  hostb  relay\n  hostb  hostb  (one rank)\n")


def test_a_host_without_a_door_uses_that_of_the_other(jobs: Jobs) -> None:
    done = on_two_hosts(jobs, "-v", "-c", SHOWS, nowhere="hosta")
    assert media(done) == {"tcp"}
    assert f"hosta has no door: cannot listen at {NOWHERE}: Cannot assign requested address" in done.err


def test_hosts_without_doors_are_relayed_and_the_user_is_warned(jobs: Jobs) -> None:
    done = on_two_hosts(jobs, "-c", SHOWS, nowhere="hosta hostb")
    assert media(done) == {"relay"}
    assert done.said.count("\n") == 1
    assert "(it has no door): their data goes through the ssh sessions, which is slower\n" in done.said


def test_who_insists_on_direct_connections_is_refused_what_cannot_have_them(jobs: Jobs) -> None:
    done = on_two_hosts(jobs, "--route", "direct", "-c", SHOWS, nowhere="hosta")
    assert (done.code, done.out) == (125, "")
    assert done.said.startswith(f"rmpi-run: hosta: cannot listen at {NOWHERE}: Cannot assign requested address")


def test_what_a_rank_has_sent_arrives_though_it_and_its_node_have_nothing_else_to_do(jobs: Jobs) -> None:
    """Rank 1 is gone before rank 0 reads a thing: all of it waits in sockets and routers. The last error says so."""
    script = jobs.script(
        """
        import os, rmpi
        comm = rmpi.init()
        comm.barrier()
        if comm.rank == 1:
            for number in range(25):
                comm.send(bytes([number]) * 30_000, 0, tag=number)
            print(os.getpid(), flush=True)
        else:
            try:
                comm.recv(1, tag=99)
            except rmpi.PeerExited:
                print("it is gone")
            print(all(comm.recv(1, tag=number) == bytes([number]) * 30_000 for number in range(25)))
        """
    )
    done = on_two_hosts(jobs, "--route", "relay", script)
    assert done.code == 0, done.err
    assert done.lines[1:] == ["True", "it is gone"]


def test_a_standstill_is_told_from_bytes_that_are_on_their_way(jobs: Jobs) -> None:
    code = "import rmpi; comm = rmpi.init(); comm.sendrecv(bytes(100_000), 1 - comm.rank); comm.recv(1 - comm.rank)"
    done = on_two_hosts(jobs, "--route", "relay", "-c", code)
    assert done.code == 1
    assert "cycle: 0 → 1 → 0" in done.said


def test_launch_takes_the_same() -> None:
    assert rmpi.launch(lambda comm: comm.rank, 1, route="direct") == [0]
    with pytest.raises(rmpi.UsageError, match=r"route='relais'; did you mean 'relay'\?"):
        rmpi.launch(lambda comm: comm.rank, 1, route="relais")
