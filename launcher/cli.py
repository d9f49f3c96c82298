"""``rmpi-run``: from the command line to an exit code.

The only place, with ``python -m launcher``, that ends the process. Everything that can be refused is refused
before anything is started: options, hostfile, program, placement, in this order.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.ending import EndedByUser, raising
from launcher.options import Options, help_text, parse
from launcher.program import Program, find_program
from launcher.screen import complain, to_nowhere
from rmpi import __version__
from rmpi.comm.placement import Placement, place
from rmpi.errors import LaunchError
from rmpi.places.hosts import HostSpec, is_local, parse_host_list
from rmpi.places.ignition import Ignition
from rmpi.places.surroundings import OURS, booter, interpreters, own_names, passed_on, read_hostfile

HERE = HostSpec("localhost")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    _open_standard_streams()
    try:
        return _run(parse(sys.argv[1:] if argv is None else argv, os.environ))
    except LaunchError as error:
        complain(f"rmpi-run: {error}\n")
        return error.status
    except KeyboardInterrupt:
        complain("rmpi-run: interrupted\n")
        return 130


def _open_standard_streams() -> None:
    """A stream that our caller closed becomes /dev/null, lest the next file we open takes its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in ("stdin", "stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, Path(os.devnull).open("r+"))  # noqa: SIM115 (for as long as we live)


def _run(options: Options) -> int:
    if options.action == "help":
        return _show(help_text())
    if options.action == "version":
        import platform

        return _show(f"rmpi {__version__} (Python {platform.python_version()})")
    if options.action == "info":
        return _inform(options)
    hosts = _hosts(options)
    directory = _directory(options, hosts)
    program = find_program(
        options.words,
        module=options.module,
        code=options.code,
        cwd=directory,
        path=os.environ.get("PATH", os.defpath),
    )
    if options.preload and not program.is_python:
        raise LaunchError(f"--preload is for Python programs, and {program.typed} is a command", status=2)
    placement = _placement(options, hosts)
    if options.dry_run:
        return _show(_plan_text(options, program, placement, directory))
    return _start(options, program, placement, directory)


def _inform(options: Options) -> int:
    """Versions and this machine; with -v and hosts or ranks, also by what medium they reach each other."""
    from launcher.info import info_text

    code = _show(info_text())
    asked = (options.hosts, options.hostfile, options.ranks, options.ppn)
    if code or not options.verbose or all(each is None for each in asked):
        return code
    hosts = _hosts(options)
    return _start(
        replace(options, verbose=0),
        Program("module", "rmpi.comm.survey", "-m", ()),
        _placement(options, hosts),
        _directory(options, hosts),
    )


def _show(text: str) -> int:
    """Print what was asked for; the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # as for ``| head``
        to_nowhere(1)
        return 128 + signal.SIGPIPE
    except OSError as error:
        to_nowhere(1)
        raise LaunchError(f"cannot write to standard output: {error.strerror}") from None
    return 0


def _directory(options: Options, hosts: Sequence[HostSpec]) -> str:
    """Where ranks start, absolute. It need not exist here if no rank runs here."""
    if options.wdir is None:
        return str(Path.cwd())
    directory = Path(options.wdir).absolute()
    if not directory.is_dir() and any(is_local(host, own_names()) for host in hosts):
        raise LaunchError(f"--wdir {options.wdir}: there is no such directory on this machine")
    return str(directory)


def _hosts(options: Options) -> list[HostSpec]:
    """The hosts that were named, this machine under the one name ``localhost``."""
    if options.hosts is not None:
        named = parse_host_list(options.hosts)
    elif options.hostfile is not None:
        named = read_hostfile(options.hostfile)
    else:
        return [HERE]
    return named


def _placement(options: Options, hosts: Sequence[HostSpec]) -> Placement:
    cores = len(os.sched_getaffinity(0))
    ranks = cores if options.ranks == "auto" else options.ranks
    per_host = cores if options.ppn == "auto" else options.ppn
    if ranks is None and per_host is None and options.hosts is None and options.hostfile is None:
        ranks = 1
    return place(hosts, ranks, per_host=per_host, oversubscribe=options.oversubscribe, cores=cores)


def _plan_text(options: Options, program: Program, placement: Placement, directory: str) -> str:
    """What ``--dry-run`` prints."""
    import shlex

    runs = shlex.join(
        [options.python or sys.executable, *_python_words(program)] if program.is_python else program.argv
    )
    many = "1 rank runs" if placement.size == 1 else f"{placement.size} ranks run"
    where = "1 host" if len(placement.hosts) == 1 else f"{len(placement.hosts)} hosts"
    lines = [f"{many} on {where}, in {directory}:", f"  {runs}", ""]
    own = own_names()
    for index, host in enumerate(placement.hosts):
        ranks = placement.ranks_on(index)
        span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
        how = "here" if is_local(host, own) else f"by {options.rsh_agent or 'ssh'}"
        lines.append(f"  {host!s:<24} ranks {span:<12} {how}")
    lines += [f"  {name}={value}" for name, value in options.environment]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in placement.warnings)])


def _python_words(program: Program) -> list[str]:
    if program.kind in ("module", "code"):
        return [program.typed, program.target, *program.args]
    return [program.target, *program.args]


def _start(options: Options, program: Program, placement: Placement, directory: str) -> int:
    """Run the job. This machine's spawner, which takes longest, begins before the rest of us is imported."""
    for name in OURS:
        os.environ.pop(name, None)
    environment = {**_terminal(), **dict(options.environment)}
    python = _local_python(options)
    ignition = None
    try:
        with raising():
            ignition = _ignite(options, program, placement, python, environment, directory)
            return _run_job(options, program, placement, directory, environment, python, ignition)
    except EndedByUser as ended:
        complain(f"rmpi-run: ended by {ended} while the job was starting\n")
        return ended.code
    finally:
        if ignition is not None:
            ignition.put_out()


def _ignite(
    options: Options,
    program: Program,
    placement: Placement,
    python: str,
    environment: Mapping[str, str],
    directory: str,
) -> Ignition | None:
    """Start this machine's spawner; None if there is to be none, or if it fails, as it then will once more."""
    own = own_names()
    ranks = sum(len(placement.ranks_on(i)) for i, host in enumerate(placement.hosts) if is_local(host, own))
    if not ranks:
        return None
    try:
        return Ignition(
            python,
            {**os.environ, **environment},
            directory,
            ranks,
            kind=program.kind,
            target=program.target,
            fork=options.fork,
            preload=options.preload,
        )
    except LaunchError:
        return None


def _run_job(
    options: Options,
    program: Program,
    placement: Placement,
    directory: str,
    environment: dict[str, str],
    python: str,
    ignition: Ignition | None,
) -> int:
    from launcher.job import Run
    from rmpi.comm.launch import Plan

    plan = Plan(
        placement=placement,
        kind=program.kind,
        target=program.target,
        argv=tuple(program.argv),
        directory=directory,
        environment=environment,
        passed_on=passed_on(os.environ),
        pythons=interpreters(options.python),
        python=python,
        start_timeout=options.start_timeout,
        kill_grace=options.kill_grace,
        on_deadlock=options.on_deadlock,
        route=options.route,
        fork=options.fork,
        preload=options.preload,
    )
    run = Run(
        plan,
        booter(options.rsh_agent, options.host_key_policy, options.ssh_config),
        own_names(),
        tag=options.tag_output if options.tag_output is not None else placement.size > 1 and os.isatty(1),
        timeout=options.timeout,
        quiet=options.quiet,
        verbose=options.verbose,
        ignition=ignition,
    )
    for warning in placement.warnings if options.oversubscribe is None else ():
        run.warn(warning)
    return run.run()


def _terminal() -> dict[str, str]:
    """How ranks know that the launcher's standard output is a terminal, and how large it is."""
    if not os.isatty(1):
        return {}
    from shutil import get_terminal_size  # late: few start from a terminal, and each start counts

    size = get_terminal_size()
    return {"RMPI_TERMINAL": f"{size.columns}x{size.lines}"}


def _local_python(options: Options) -> str:
    if options.python is None:
        return sys.executable
    from shutil import which

    found = which(os.path.expanduser(options.python))  # noqa: PTH111 (a Path forgets the ./ of ./python)
    if found is None:
        raise LaunchError(f"--python {options.python}: there is no such interpreter on this machine")
    return str(Path(found).absolute())


if __name__ == "__main__":
    sys.exit(main())
