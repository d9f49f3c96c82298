"""The command line: every spelling, every shape of value, and what a slip of the hand is told."""

from __future__ import annotations

import re

import pytest

from launcher.options import GROUPS, Options, help_text, parse
from rmpi.errors import LaunchError

ROWS = [option for _, options in GROUPS for option in options]


def options(line: str, **environ: str) -> Options:
    return parse(line.split(), environ)


def complaint(*argv: str, **environ: str) -> str:
    with pytest.raises(LaunchError) as caught:
        parse(argv, environ)
    assert caught.value.status == 2
    return str(caught.value)


# --- Where options end ---


def test_all_after_the_program_belongs_to_the_program():
    got = options("-n 4 kmeans.py --k 16 -n 5 -- photo.jpg")
    assert (got.ranks, got.words) == (4, ("kmeans.py", "--k", "16", "-n", "5", "--", "photo.jpg"))


def test_two_dashes_end_the_options():
    assert options("-n 4 -- -odd.py -n 5").words == ("-odd.py", "-n", "5")


def test_a_module_ends_the_options():
    got = options("-n 4 -m package.train -n 5 -- x")
    assert (got.module, got.words, got.ranks) == ("package.train", ("-n", "5", "--", "x"), 4)


def test_code_ends_the_options():
    got = parse(["-c", "print(1)", "-n", "5"], {})
    assert (got.code, got.words, got.ranks) == ("print(1)", ("-n", "5"), None)


def test_words_pass_unharmed():
    words = ("a script.py", "$HOME", "it's", "new\nline", "ünï", "")
    assert parse(words, {}).words == words


def test_nothing_given_means_the_defaults():
    assert options("kmeans.py") == Options(words=("kmeans.py",))


@pytest.mark.parametrize("argv", [(), ("-n", "4"), ("--",), ("",)])
def test_a_program_is_needed(argv):
    assert "usage: rmpi-run [options] PROGRAM [arguments]" in complaint(*argv)


# --- Spellings ---


@pytest.mark.parametrize(
    ("field", "value", "spellings"),
    [
        ("hostfile", "h", "-f --hostfile --machinefile -hostfile -machinefile"),
        ("hosts", "a:2,b", "-H --host --hosts -host -hosts"),
        ("ranks", "4", "-n --np -np --nprocs --ntasks"),
        ("ppn", "4", "--ppn -ppn -N --npernode --ntasks-per-node --nproc-per-node --perhost"),
        ("wdir", "/data", "--wdir -wdir --wd --chdir -D"),
        ("python", "/opt/py", "--python"),
        ("rsh_agent", "ssh", "--rsh-agent"),
        ("ssh_config", "conf", "--ssh-config"),
        ("host_key_policy", "off", "--host-key-policy"),
        ("on_deadlock", "off", "--on-deadlock"),
        ("route", "relay", "--route"),
        ("timeout", "9", "--timeout"),
        ("start_timeout", "9", "--start-timeout"),
        ("kill_grace", "9", "--kill-grace"),
    ],
)
def test_every_spelling_takes_its_value_behind_a_space_or_an_equals_sign(field, value, spellings):
    for name in spellings.split():
        for argv in ([name, value, "x"], [f"{name}={value}", "x"]):
            assert str(getattr(parse(argv, {}), field)).removesuffix(".0") == value


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("--dry-run", "dry_run", True),
        ("--oversubscribe", "oversubscribe", True),
        ("--no-oversubscribe", "oversubscribe", False),
        ("-l", "tag_output", True),
        ("--tag-output", "tag_output", True),
        ("--label", "tag_output", True),
        ("-prepend-rank", "tag_output", True),
        ("--no-tag-output", "tag_output", False),
        ("-q", "quiet", True),
        ("--quiet", "quiet", True),
        ("--no-fork", "fork", False),
        ("--preload a,b.c --preload=d", "preload", ("a", "b.c", "d")),
        ("-v", "verbose", 1),
        ("-vv", "verbose", 2),
        ("-v --verbose -vv", "verbose", 4),
    ],
)
def test_flags(line, field, value):
    assert getattr(options(f"{line} x"), field) == value


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("-n4", "ranks", 4),
        ("-nauto", "ranks", "auto"),
        ("-N2", "ppn", 2),
        ("-fhosts", "hostfile", "hosts"),
        ("-Ha:2,b", "hosts", "a:2,b"),
        ("-D/data", "wdir", "/data"),
        ("-xK=V", "environment", (("K", "V"),)),
    ],
)
def test_a_value_may_be_written_into_a_short_option(word, field, value):
    assert getattr(options(f"{word} x"), field) == value


@pytest.mark.parametrize("word", ["-machinefil", "-map-by", "-configfile", "-cprint", "-mtimeit"])
def test_code_and_modules_are_never_read_out_of_a_mistyped_option(word):
    assert f"unknown option {word}" in complaint(word, "x")


def test_of_an_option_given_twice_the_last_counts():
    assert options("-n 2 --no-tag-output --np=3 -l x") == Options(words=("x",), ranks=3, tag_output=True)


@pytest.mark.parametrize("argv", ["-h", "--help", "-n 2 --help x", "--help --nonsense"])
def test_help_needs_no_program(argv):
    assert options(argv).action == "help"


@pytest.mark.parametrize("argv", ["--version", "-V", "--version kmeans.py"])
def test_version_needs_no_program(argv):
    assert options(argv).action == "version"


def test_info_needs_no_program_and_takes_hosts():
    asked = options("--info -v -n 2")
    assert (asked.action, asked.verbose, asked.ranks, asked.words) == ("info", 1, 2, ())
    for program in ("kmeans.py", "-m timeit", "-c pass"):
        assert "--info runs no program" in complaint("--info", *program.split())


# --- Values ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5m", 90),
        (".5", 0.5),
        ("2h", 7200),
        ("1:30", 90),
        ("1:30:00", 5400),
        ("100:00:01", 360001),
        ("90:00", 5400),
    ],
)
def test_durations(text, seconds):
    assert options(f"--timeout {text} x").timeout == seconds


@pytest.mark.parametrize(
    "text", ["soon", "-1", "1d", "1:75", "1:60:00", "nan", "inf", "1e3", "1_0", " 5", "٣", "0", "99999h", ":30", "1:"]
)
def test_what_is_no_duration_is_refused_with_an_example(text):
    said = complaint("--timeout", text, "x")
    assert said.startswith(f'--timeout "{text}" ')
    assert said.endswith("(for example: --timeout 1.5m)")


def test_only_the_grace_may_be_nothing():
    assert options("--kill-grace 0 x").kill_grace == 0
    assert "leaves no time at all" in complaint("--start-timeout", "0s", "x")


@pytest.mark.parametrize(
    "text", ["two", "0", "-1", "1.0", "1_0", " 4", "+4", "٤", "65537", "99999999", "9" * 5000, "0x4", "AUTO"]
)
@pytest.mark.parametrize("name", ["-n", "--ppn"])
def test_a_number_of_ranks_is_a_whole_number(name, text):
    said = complaint(name, text, "x")
    assert f'{name} "{text}" is not a whole number from 1 to 65536, nor auto (for example: {name} ' in said


@pytest.mark.parametrize(("text", "ranks"), [("1", 1), ("65536", 65536), ("004", 4), ("auto", "auto")])
def test_numbers_of_ranks(text, ranks):
    assert options(f"-n {text} x").ranks == ranks


@pytest.mark.parametrize("text", ["a,", "a b", "a.py,", "1a", "a..b", "a/b"])
def test_what_is_no_list_of_modules_is_refused(text):
    assert f'--preload "{text}" is not a list of modules (for example: --preload pandas,scipy.linalg)' in complaint(
        "--preload", text, "x"
    )


def test_a_hostfile_may_be_standard_input():
    assert options("-f - x").hostfile == "-"


def test_what_to_do_about_a_deadlock_is_one_of_three():
    assert options("x").on_deadlock == "abort"
    assert complaint("--on-deadlock", "wait", "x") == (
        '--on-deadlock "wait" is not one of abort, report, off (for example: --on-deadlock report)'
    )


def test_the_route_is_one_of_three():
    assert options("x").route == "auto"
    assert complaint("--route", "ssh", "x") == (
        '--route "ssh" is not one of auto, direct, relay (for example: --route relay)'
    )


def test_the_host_key_policy_is_one_of_three():
    assert options("x").host_key_policy == "strict"
    assert complaint("--host-key-policy", "ask", "x") == (
        '--host-key-policy "ask" is not one of strict, accept-new, off (for example: --host-key-policy accept-new)'
    )


@pytest.mark.parametrize("name", ["-f", "-H", "--wdir", "--python", "-m", "--rsh-agent", "--ssh-config"])
def test_an_empty_value_is_refused(name):
    assert complaint(name, "", "x").startswith(f'{name} "" is empty (for example: {name} ')


def test_a_value_that_would_upset_the_terminal_is_shown_escaped():
    assert r"-n 'a\x1b[2J\n' is not" in complaint("-n", "a\x1b[2J\n", "x")


# --- The environment ---


def test_variables_are_set_passed_on_and_matched():
    got = options("-x A=1 -x OMP_B -x P* x", OMP_B="2", PB="b", PA="a", Q="q")
    assert got.environment == (("A", "1"), ("OMP_B", "2"), ("PA", "a"), ("PB", "b"))


def test_values_of_variables_pass_unharmed():
    got = parse(["-x", "A=b=c d\n$E", "-genv", "K", "-v=*", "-x", "EMPTY=", "x"], {})
    assert got.environment == (("A", "b=c d\n$E"), ("K", "-v=*"), ("EMPTY", ""))


def test_a_pattern_may_match_nothing():
    assert options("-x SLURM_* x", A="1").environment == ()


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("-x", "FOO"), '-x "FOO" names a variable that is not set here (for example: -x OMP_NUM_THREADS=2)'),
        (("-x", "=1"), '-x "=1" names no variable'),
        (("-x", ""), '-x "" names no variable'),
        (("-x", "A*=1"), '-x "A*=1" gives a pattern a value'),
        (("-genv", "A=1", "2"), '-genv "A=1 2" has a = in the name'),
        (("-genv=A", "2"), "-genv takes 2 words (for example: -genv OMP_NUM_THREADS 2)"),
    ],
)
def test_what_is_no_variable_is_refused(argv, why):
    assert why in complaint(*argv, "x")


# --- Hostfile by environment, conflicts ---


def test_the_hostfile_may_come_from_the_environment():
    assert options("x", RMPI_HOSTFILE="h").hostfile == "h"
    assert options("x", RMPI_HOSTFILE="").hostfile is None


def test_the_command_line_outweighs_the_environment():
    assert options("-f mine x", RMPI_HOSTFILE="h").hostfile == "mine"
    got = options("-H a:2 x", RMPI_HOSTFILE="h")
    assert (got.hostfile, got.hosts) == (None, "a:2")


def test_hosts_are_named_in_one_place():
    said = complaint("--machinefile", "h", "-H", "a", "x")
    assert "--machinefile and -H exclude each other" in said
    assert "for example: -H" in said


def test_quiet_and_verbose_exclude_each_other():
    assert "-q and -vv exclude each other" in complaint("-vv", "-q", "x")


# --- Slips of the hand ---


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--hostfiel", "--hostfile"),
        ("--hostfiel=h", "--hostfile"),
        ("--host-key", "--host-key-policy"),
        ("--time", "--timeout"),
        ("-timeout", "--timeout"),
        ("-np4", "-np"),
        ("--tagoutput", "--tag-output"),
        ("--oversubscribed", "--oversubscribe"),
    ],
)
def test_an_unknown_option_names_the_one_probably_meant(typed, meant):
    assert complaint(typed, "x") == f"unknown option {typed.partition('=')[0]} (did you mean {meant}?)"


def test_an_option_like_no_other_points_to_the_help():
    assert complaint("--zzz", "x") == "unknown option --zzz (rmpi-run --help lists them)"


@pytest.mark.parametrize("row", [row for row in ROWS if row.takes], ids=lambda row: row.names[0])
def test_every_option_that_takes_a_value_says_so_with_a_good_example(row):
    for name in row.names:
        said = complaint(name)
        assert said.startswith(f"{name} needs {' '.join(row.takes)}, but the command line ends")
        assert said.endswith(f"(for example: {name} {row.example})")
    words = row.example.strip("'") if row.example.startswith("'") else row.example
    parse([row.names[0], *(words.split() if len(row.takes) > 1 else [words]), "x"], {})


def test_an_option_is_not_taken_for_the_value_of_another():
    assert "-f needs FILE, but the option -n follows" in complaint("-f", "-n", "4", "x")
    assert parse(["-f=-n", "x"], {}).hostfile == "-n"


def test_a_flag_takes_no_value():
    assert complaint("--dry-run=yes", "x") == '--dry-run takes no value, but was given "yes" (write: --dry-run)'


# --- Help ---


def test_the_help_fits_a_terminal():
    assert max(map(len, help_text().splitlines())) <= 80


def test_the_help_begins_with_two_examples():
    assert [line.split()[0] for line in help_text().splitlines()[2:4]] == ["rmpi-run", "rmpi-run"]


@pytest.mark.parametrize("name", [name for row in ROWS for name in row.names])
def test_the_help_names_every_spelling(name):
    assert re.search(rf"(?<![\w-]){name}(?![\w-])", help_text())


def test_no_spelling_means_two_things():
    names = [name for row in ROWS for name in row.names]
    assert len(names) == len(set(names))
