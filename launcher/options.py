"""The command line of ``rmpi-run``: words in, `Options` out, or a `LaunchError` that shows a good value.

One table, `GROUPS`, is the whole truth: the parser walks it, the help is printed from it, and the
suggestions are its names. The module knows spellings and the shape of values. It refuses to know what
they mean: it opens no file, looks up no host and counts no cores, so ``--hostfile`` and ``--host`` stay as
typed and ``-n auto`` stays ``"auto"``.

The invariant: no word is ever guessed at. An option is spelled as in the table or it is an error; options
end at the first word that is not one, and from there on every word belongs to the program, as typed.

Why not argparse: it abbreviates, it takes options from behind the program, its single-dash long options
(``-np 4``, as MPI people type) clash with ``-n4``, and its complaints show no example of what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rmpi.errors import LaunchError

USAGE = "usage: rmpi-run [options] PROGRAM [arguments]"

MOST_RANKS = 65_536
"""Ranks in a job, and on a host; a larger number is refused as a slip of the hand, like that many slots."""

LONGEST = 365 * 24 * 3600.0
"""Seconds a duration may have, a year; a larger one is refused as a slip of the hand."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for. None means: not given, the one who acts on it decides.

    Attributes:
        action: ``"run"``; or ``"help"`` or ``"version"``, and nothing else is meant; or ``"info"``, of no program.
        words: The program and its arguments; with ``module`` or ``code``, the arguments alone.
        module: Of ``-m``; never together with ``code``, nor either with a program in ``words``.
        code: Of ``-c``.
        hostfile: A path as typed, ``"-"`` for standard input; else the value of ``RMPI_HOSTFILE``.
        hosts: The list of ``-H`` as typed; never together with ``hostfile``.
        ranks: Of the whole job, from 1; or ``"auto"``, one for each core.
        ppn: Ranks on each host, from 1; or ``"auto"``, one for each core.
        oversubscribe: Whether a host may get more ranks than it has slots.
        environment: Names and values for the ranks, in order; of a name given twice the later holds.
        wdir: The directory ranks start in, as typed.
        python: The interpreter of the ranks, as typed.
        preload: Modules to import once on each host, before ranks are forked.
        fork: Whether ranks may be forked from an interpreter that has imported what they need.
        timeout: Seconds the job may take; None is no limit.
        start_timeout: Seconds until every rank must have started.
        kill_grace: Seconds between asking ranks to end and killing them; 0 kills at once.
        on_deadlock: Whether ranks that wait for each other for ever raise an error, or are only reported, or neither.
        route: Whether data between hosts goes directly, or through the ssh sessions; auto is that where it must.
        dry_run: Show the plan, start nothing.
        tag_output: Whether lines are labelled with their rank.
        rsh_agent: The command that takes the place of ssh, unsplit.
        ssh_config: A file in place of ``~/.ssh/config``, as typed.
        verbose: How many times ``-v`` was given; 0 if ``quiet``.
    """

    action: Literal["run", "help", "version", "info"] = "run"
    words: tuple[str, ...] = ()
    module: str | None = None
    code: str | None = None
    hostfile: str | None = None
    hosts: str | None = None
    ranks: int | Literal["auto"] | None = None
    ppn: int | Literal["auto"] | None = None
    oversubscribe: bool | None = None
    environment: tuple[tuple[str, str], ...] = ()
    wdir: str | None = None
    python: str | None = None
    preload: tuple[str, ...] = ()
    fork: bool = True
    timeout: float | None = None
    start_timeout: float = 60.0
    kill_grace: float = 5.0
    on_deadlock: Literal["abort", "report", "off"] = "abort"
    route: Literal["auto", "direct", "relay"] = "auto"
    dry_run: bool = False
    tag_output: bool | None = None
    rsh_agent: str | None = None
    host_key_policy: Literal["strict", "accept-new", "off"] = "strict"
    ssh_config: str | None = None
    verbose: int = 0
    quiet: bool = False


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Read the words after ``rmpi-run``.

    Args:
        argv: The command line without its first word.
        environ: The launcher's environment: for ``-x NAME``, and ``RMPI_HOSTFILE`` where no host is given.

    Of an option given twice the last one counts; ``-x``, ``--preload`` and ``-v`` add up.

    Raises:
        LaunchError: With status 2. Its text names the option and the value, and shows a good value.
    """
    words = list(argv)
    given: dict[str, Any] = {}
    typed: dict[str, str] = {}
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        name, option, attached = _recognise(word)
        value = _value(name, option, attached, words)
        if value in ("help", "version") and option.field == "action":
            return Options(action=value)
        given[option.field] = given.get(option.field, option.start) + value if option.adds else value
        typed[option.field] = name
        if option.ends:
            break
    _refuse_conflicts(typed)
    _require_program(typed, words)
    given["environment"] = _environment(given.get("environment", ()), environ)
    if not ("hostfile" in given or "hosts" in given):
        given["hostfile"] = environ.get("RMPI_HOSTFILE") or None
    return Options(**given, words=tuple(words))


# --- The values ------------------------------------------------------------------------------------------
# A reader returns the value, or raises ValueError with the predicate of "-n "two" ...".


def _text(word: str) -> str:
    if not word:
        raise ValueError("is empty")
    return word


def _count(word: str) -> int | str:
    """Not ``int(word)`` alone, which takes " 4 ", "1_000" and the digits of every script."""
    if word == "auto":
        return word
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", word) or int(word) > MOST_RANKS:
        raise ValueError(f"is not a whole number from 1 to {MOST_RANKS}, nor auto")
    return int(word)


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(word: str) -> float:
    """``90``, ``90s``, ``1.5m``, ``2h``, ``1:30`` (minutes and seconds), ``1:30:00``; 0 or more."""
    if plain := re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([smh]?)", word):
        seconds = float(plain[1]) * _UNITS[plain[2]]
    elif clock := re.fullmatch(r"(?:([0-9]+):)?([0-9]+):([0-5][0-9])", word):
        hours, minutes, rest = (float(part or 0) for part in clock.groups())
        if clock[1] and minutes > 59:
            raise ValueError("has more than 59 minutes")
        seconds = hours * 3600 + minutes * 60 + rest
    else:
        raise ValueError("is not a duration in seconds, with a unit (s, m, h), or as h:mm:ss")
    if seconds > LONGEST:
        raise ValueError("is more than a year")
    return seconds


def _some_seconds(word: str) -> float:
    """A limit of nothing would end every job; leave the option away for no limit."""
    seconds = _seconds(word)
    if not seconds:
        raise ValueError("leaves no time at all")
    return seconds


def _policy(word: str) -> str:
    if word not in ("strict", "accept-new", "off"):
        raise ValueError("is not one of strict, accept-new, off")
    return word


def _deadlock(word: str) -> str:
    if word not in ("abort", "report", "off"):
        raise ValueError("is not one of abort, report, off")
    return word


def _route(word: str) -> str:
    if word not in ("auto", "direct", "relay"):
        raise ValueError("is not one of auto, direct, relay")
    return word


def _modules(word: str) -> tuple[str, ...]:
    names = tuple(word.split(","))
    if not all(part.isidentifier() for name in names for part in name.split(".")):
        raise ValueError("is not a list of modules")
    return names


def _export(word: str) -> tuple[str, ...]:
    """A word of ``-x``, kept as it is until the environment is looked at."""
    name, assigned, _ = word.partition("=")
    if not name:
        raise ValueError("names no variable")
    if assigned and _is_pattern(name):
        raise ValueError("gives a pattern a value")
    return (word,)


def _genv(name: str, value: str) -> tuple[str, ...]:
    if "=" in name:
        raise ValueError("has a = in the name")
    return _export(f"{name}={value}")


def _is_pattern(name: str) -> bool:
    return any(c in name for c in "*?[")


def _environment(exports: Sequence[str], environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for word in exports for pair in _exported(word, environ))


def _exported(word: str, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """A pattern that matches nothing is no error: scripts say ``-x 'SLURM_*'`` wherever they run."""
    name, assigned, value = word.partition("=")
    if assigned:
        return [(name, value)]
    if _is_pattern(name):
        from fnmatch import fnmatchcase  # late, as few need it

        return [(key, environ[key]) for key in sorted(environ) if fnmatchcase(key, name)]
    if name not in environ:
        raise _bad_value("-x", _NAMES["-x"], [word], "names a variable that is not set here")
    return [(name, environ[name])]


# --- The table -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """A row of the table.

    Attributes:
        names: The spellings, all exact; the house's own come first.
        field: Of `Options`.
        takes: What its values are called, one word each; none for a flag.
        read: From the words of ``takes`` to the value of the field.
        example: A good value, for complaints.
        value: What a flag means.
        adds: Whether a repetition adds to the value (from ``start``) instead of replacing it.
        attaches: What a value must match to be written without a space, as in ``-n4``.
        ends: Whether the options end here and the program's arguments begin.
        shown: How many of the names stand before the help; the others are named at its end.
    """

    names: tuple[str, ...]
    field: str
    help: str
    takes: tuple[str, ...] = ()
    read: Callable[..., Any] = _text
    example: str = ""
    value: Any = True
    adds: bool = False
    start: Any = None
    attaches: str = ""
    ends: bool = False
    shown: int = 2


# Only where nothing else can be meant: -m and -c attach nothing, for people also type the peers'
# -machinefile, -map-by and -configfile, and "no module named ap-by" would not help them.
_ANY, _NUMBER = r".+", r"[^a-zA-Z].*|auto"

GROUPS: tuple[tuple[str, tuple[Option, ...]], ...] = (
    (
        "Where to run",
        (
            Option(
                ("-f", "--hostfile", "--machinefile", "-hostfile", "-machinefile"),
                "hostfile",
                "hosts and their slots, one host a line; - reads standard input (default: $RMPI_HOSTFILE, "
                "else this machine)",
                ("FILE",),
                example="hosts.txt",
                attaches=_ANY,
            ),
            Option(
                ("-H", "--host", "--hosts", "-host", "-hosts"),
                "hosts",
                "hosts right here: node1:4,alice@node2:2,n[01-04]",
                ("LIST",),
                example="node1:4,node2:4",
                attaches=_ANY,
            ),
        ),
    ),
    (
        "How many ranks",
        (
            Option(
                ("-n", "--np", "-np", "--nprocs", "--ntasks"),
                "ranks",
                "ranks in all; auto is one for each core (default: as many as there are slots)",
                ("N",),
                _count,
                "4",
                attaches=_NUMBER,
            ),
            Option(
                ("-N", "--ppn", "-ppn", "--npernode", "--ntasks-per-node", "--nproc-per-node", "--perhost"),
                "ppn",
                "ranks on each host; auto is one for each core",
                ("N",),
                _count,
                "2",
                attaches=_NUMBER,
            ),
            Option(
                ("--oversubscribe",),
                "oversubscribe",
                "allow more ranks on a host than it has slots",
            ),
            Option(
                ("--no-oversubscribe", "--nooversubscribe"),
                "oversubscribe",
                "refuse them (default: refuse them where slots were given)",
                value=False,
                shown=1,
            ),
        ),
    ),
    (
        "What each rank runs, and in which surroundings",
        (
            Option(
                ("-m",),
                "module",
                "run a module, like python -m; ends the options",
                ("MODULE",),
                example="package.train",
                ends=True,
            ),
            Option(
                ("-c",),
                "code",
                "run a line of Python, like python -c; ends the options",
                ("CODE",),
                str,
                "'import rmpi; print(rmpi.init().rank)'",
                ends=True,
            ),
            Option(
                ("--python",),
                "python",
                "the interpreter on every host (default: this one, if it exists there)",
                ("PATH",),
                example="/opt/py/bin/python",
            ),
            Option(
                ("--preload",),
                "preload",
                "modules to import once on each host, for all its ranks; with NumPy, which always is",
                ("A,B",),
                _modules,
                "pandas,scipy.linalg",
                adds=True,
                start=(),
            ),
            Option(
                ("--no-fork",),
                "fork",
                "start an interpreter for each rank, which takes longer, instead of forking one",
                value=False,
            ),
            Option(
                ("-D", "--wdir", "-wdir", "--wd", "--chdir"),
                "wdir",
                "the directory to start in (default: this one)",
                ("DIR",),
                example="/data/run1",
                attaches=_ANY,
            ),
            Option(
                ("-x",),
                "environment",
                "set a variable, pass one on, or pass on all that match; may be repeated",
                ("K=V|K|'P*'",),
                _export,
                "OMP_NUM_THREADS=2",
                adds=True,
                start=(),
                attaches=_ANY,
            ),
            Option(
                ("-genv",),
                "environment",
                "the same as -x K=V",
                ("K", "V"),
                _genv,
                "OMP_NUM_THREADS 2",
                adds=True,
                start=(),
            ),
        ),
    ),
    (
        "Time: 90, 90s, 1.5m, 2h or 1:30:00",
        (
            Option(
                ("--timeout",),
                "timeout",
                "end the job after that long; exit status 124 (default: no limit)",
                ("DUR",),
                _some_seconds,
                "1.5m",
            ),
            Option(
                ("--start-timeout",),
                "start_timeout",
                "give up unless every rank has started by then (default: 60s)",
                ("DUR",),
                _some_seconds,
                "90s",
            ),
            Option(
                ("--kill-grace",),
                "kill_grace",
                "time between asking ranks to end and killing them (default: 5s)",
                ("DUR",),
                _seconds,
                "10s",
            ),
        ),
    ),
    (
        "When all ranks wait for each other",
        (
            Option(
                ("--on-deadlock",),
                "on_deadlock",
                "abort: they raise Deadlock, which says who waits for whom, and where (default); report: say that "
                "once, and let them wait; off: do not look",
                ("WHAT",),
                _deadlock,
                "report",
            ),
        ),
    ),
    (
        "What is shown",
        (
            Option(
                ("-l", "--tag-output", "--label", "-prepend-rank"),
                "tag_output",
                "label each line with its rank (default: if several ranks share a terminal)",
            ),
            Option(("--no-tag-output",), "tag_output", "show lines as they are", value=False),
            Option(("--dry-run",), "dry_run", "show which rank would run where, and start nothing"),
            Option(
                ("-v", "--verbose"),
                "verbose",
                "say what is being done",
                value=1,
                adds=True,
                start=0,
            ),
            Option(("-q", "--quiet"), "quiet", "say nothing but errors"),
        ),
    ),
    (
        "How other hosts are reached",
        (
            Option(
                ("--route",),
                "route",
                "auto: data goes directly between hosts, or through the ssh sessions where a firewall is in the way "
                "(default); direct: never through them; relay: always, and no port is opened",
                ("WAY",),
                _route,
                "relay",
            ),
            Option(
                ("--rsh-agent",),
                "rsh_agent",
                "a program to use in place of the built-in ssh client",
                ("CMD",),
                example="'ssh -x'",
            ),
            Option(
                ("--host-key-policy",),
                "host_key_policy",
                "strict: only hosts in known_hosts (default); accept-new: also hosts never seen before; off: any",
                ("POLICY",),
                _policy,
                "accept-new",
            ),
            Option(
                ("--ssh-config",),
                "ssh_config",
                "in place of ~/.ssh/config",
                ("FILE",),
                example="./ssh_config",
            ),
        ),
    ),
    (
        "About",
        (
            Option(("-h", "--help"), "action", "show this and exit", value="help"),
            Option(
                ("--info",),
                "action",
                "show versions, this machine and its links; with -v and hosts, also what joins them",
                value="info",
            ),
            Option(("-V", "--version"), "action", "show the version and exit", value="version"),
        ),
    ),
)

_NAMES: dict[str, Option] = {name: option for _, group in GROUPS for option in group for name in option.names}


# --- One word at a time ----------------------------------------------------------------------------------


def _recognise(word: str) -> tuple[str, Option, str | None]:
    """The option that ``word`` is: its name as typed, its row, and the value written into the word."""
    if word in _NAMES:
        return word, _NAMES[word], None
    name, equals, value = word.partition("=")
    if equals and name in _NAMES:
        return name, _NAMES[name], value
    short = _NAMES.get(word[:2])
    if short and short.attaches and re.fullmatch(short.attaches, word[2:], re.DOTALL):
        return word[:2], short, word[2:]
    if re.fullmatch("-v+", word):
        return word, Option((word,), "verbose", "", value=len(word) - 1, adds=True, start=0), None
    raise _unknown(name)


def _value(name: str, option: Option, attached: str | None, words: list[str]) -> Any:
    """The value of an option; takes the words it consists of from the front of ``words``."""
    if not option.takes:
        if attached is not None:
            raise _usage(f"{name} takes no value, but was given {_quoted(attached)} (write: {name})")
        return option.value
    if attached is not None and len(option.takes) > 1:
        raise _usage(f"{name} takes {len(option.takes)} words (for example: {name} {option.example})")
    values = [attached] if attached is not None else _take(name, option, words)
    try:
        return option.read(*values)
    except ValueError as error:
        raise _bad_value(name, option, values, str(error)) from None


def _take(name: str, option: Option, words: list[str]) -> list[str]:
    """An option's name is not taken for a value: in ``-f -n 4`` the file was forgotten."""
    values = words[: len(option.takes)]
    wanted = f"{name} needs {' '.join(option.takes)}"
    example = f"(for example: {name} {option.example})"
    if option_name := next((value for value in values if value in _NAMES), None):
        raise _usage(f"{wanted}, but the option {option_name} follows {example}")
    if len(values) < len(option.takes):
        raise _usage(f"{wanted}, but the command line ends {example}")
    del words[: len(values)]
    return values


def _refuse_conflicts(typed: Mapping[str, str]) -> None:
    if "hostfile" in typed and "hosts" in typed:
        raise _usage(
            f"{typed['hostfile']} and {typed['hosts']} exclude each other: "
            f"name all hosts in one of them (for example: -H node1:4,node2:4)"
        )
    if "quiet" in typed and "verbose" in typed:
        raise _usage(f"{typed['quiet']} and {typed['verbose']} exclude each other: leave one of them away")


def _require_program(typed: Mapping[str, str], words: Sequence[str]) -> None:
    if "action" in typed and (words or "module" in typed or "code" in typed):
        raise _usage(f"{typed['action']} runs no program (write: rmpi-run --info -v -H node1,node2)")
    if "module" in typed or "code" in typed or "action" in typed:
        return
    if not words:
        raise _usage(f"no program given (for example: rmpi-run -n 4 kmeans.py)\n{USAGE}")
    if not words[0]:
        raise _usage(f'the program is "", an empty word (for example: rmpi-run -n 4 kmeans.py)\n{USAGE}')


# --- Complaints ------------------------------------------------------------------------------------------


def _usage(text: str) -> LaunchError:
    return LaunchError(text, status=2)


def _bad_value(name: str, option: Option, values: Sequence[str], why: str) -> LaunchError:
    return _usage(f"{name} {_quoted(' '.join(values))} {why} (for example: {name} {option.example})")


def _unknown(name: str) -> LaunchError:
    nearest = _nearest(name)
    hint = f"did you mean {nearest}?" if nearest else "rmpi-run --help lists them"
    return _usage(f"unknown option {_bare(name)} ({hint})")


def _nearest(name: str) -> str | None:
    """The option probably meant: one that begins so (abbreviations are a habit), or is spelled alike."""
    from difflib import get_close_matches  # late: only complaints need it

    begins = sorted((known for known in _NAMES if len(name) > 2 and known.startswith(name)), key=len)
    return next(iter(begins or get_close_matches(name, _NAMES, n=1, cutoff=0.7)), None)


def _quoted(text: str) -> str:
    return f'"{text}"' if text.isprintable() else repr(text)


def _bare(text: str) -> str:
    return text if text.isprintable() else repr(text)


# --- Help ------------------------------------------------------------------------------------------------

_EXAMPLES = """\
  rmpi-run -n 4 kmeans.py                    four ranks on this machine
  rmpi-run -f hosts.txt kmeans.py --k 16     a rank for each slot of these hosts
"""

_EXITS = """\
Options end at PROGRAM; all that follows is the program's own. -- ends them too.
PROGRAM is a script, a directory or zip file with a __main__.py, or a command.
An option given twice: the last one counts (-x, --preload, -v add up).

Exit status: that of the rank that failed first; 128 + N if signal N ended it;
70 if it left without finishing; 124 out of time; 125 rmpi-run itself failed;
126 cannot be run; 127 not found; 2 bad option or hostfile.
"""


def help_text() -> str:
    """What ``rmpi-run --help`` shows: at most 80 columns, examples first, every spelling named once."""
    groups = (f"{title}:\n" + "".join(map(_help_row, options)) for title, options in GROUPS)
    return "\n".join([f"{USAGE}\n\n{_EXAMPLES}", *groups, _EXITS])


def _help_row(option: Option) -> str:
    from textwrap import wrap

    head = "  " + ", ".join(option.names[: option.shown]) + "".join(f" {word}" for word in option.takes)
    aliases = ", ".join(option.names[option.shown :])
    lines = wrap(
        f"{option.help} (also {aliases})" if aliases else option.help,
        54,
        break_on_hyphens=False,
        break_long_words=False,
    )
    first = f"{head:<25} {lines[0]}" if len(head) <= 25 else f"{head}\n{'':26}{lines[0]}"
    return "".join(f"{line}\n" for line in [first, *(f"{'':26}{line}" for line in lines[1:])])
