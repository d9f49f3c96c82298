"""The hostfile grammar: every form it accepts, every form it refuses, and where the caret points."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmpi.errors import LaunchError
from rmpi.places.hosts import (
    EXCERPT,
    MAX_RANGE_NAMES,
    HostSpec,
    decode_hostfile,
    is_local,
    parse_host_list,
    parse_hostfile,
)

EXAMPLE = Path(__file__).parents[2] / "hostfile.example"


def refusal(parse, *arguments):
    """The text of the `LaunchError` that ``parse(*arguments)`` raises."""
    with pytest.raises(LaunchError) as caught:
        parse(*arguments)
    assert caught.value.status == 2
    return str(caught.value)


def outcome(parse, *arguments):
    """What ``parse(*arguments)`` returns, or the `LaunchError` it raises; for tests where either is right."""
    try:
        return parse(*arguments)
    except LaunchError as error:
        return error


def under_the_carets(text):
    """What the caret line of an error points at, in the line above it."""
    _, line, carets = text.split("\n")
    assert carets.strip(" ").strip("^") == ""
    return line[carets.index("^") : len(carets)]


# ---- what is accepted ----


@pytest.mark.parametrize(
    ("line", "host"),
    [
        ("node1", HostSpec("node1")),
        ("node1:4", HostSpec("node1", slots=4)),
        ("node1 slots=4", HostSpec("node1", slots=4)),
        ("node1 slots=0004", HostSpec("node1", slots=4)),
        ("node1 slots=65536", HostSpec("node1", slots=65536)),
        ("node1:2 max_slots=4", HostSpec("node1", slots=2, max_slots=4)),
        ("node1 max-slots=4", HostSpec("node1", max_slots=4)),
        ("node1 slots-max=4", HostSpec("node1", max_slots=4)),
        ("node1 max_slots=4 slots=4", HostSpec("node1", slots=4, max_slots=4)),
        ("ann@node1:2", HostSpec("node1", slots=2, user="ann")),
        ("node1 user=ann", HostSpec("node1", user="ann")),
        ("node1 username=ann", HostSpec("node1", user="ann")),
        ("ann@corp.example@node1", HostSpec("node1", user="ann@corp.example")),
        (r"CORP\ann@node1", HostSpec("node1", user=r"CORP\ann")),
        ("node1 port=2222", HostSpec("node1", port=2222)),
        ("node1 python=/opt/py/bin/python", HostSpec("node1", python="/opt/py/bin/python")),
        ("node1 python=~/venv//bin/python", HostSpec("node1", python="~/venv//bin/python")),
        ('node1 python="/my venv/#1, old/python"', HostSpec("node1", python="/my venv/#1, old/python")),
        ('node1 slots="4"', HostSpec("node1", slots=4)),
        ("10.0.0.7:4", HostSpec("10.0.0.7", slots=4)),
        ("[::1]", HostSpec("::1")),
        ("[::1]:4", HostSpec("::1", slots=4)),
        ("ann@[2001:db8::1]:4", HostSpec("2001:db8::1", slots=4, user="ann")),
        ("::1", HostSpec("::1")),
        ("2001:db8::1 slots=4", HostSpec("2001:db8::1", slots=4)),
        ("fe80::1%eth0", HostSpec("fe80::1%eth0")),
        ("[fe80::1%eth0]:2", HostSpec("fe80::1%eth0", slots=2)),
        ("my_node-1.example.org.", HostSpec("my_node-1.example.org.")),
        ("\t node1\tslots=4 \t", HostSpec("node1", slots=4)),
        ("node1 slots=4\r", HostSpec("node1", slots=4)),
        ("node1# four", HostSpec("node1")),
        ("node1 slots=4 # four", HostSpec("node1", slots=4)),
        ("node1 slots=4 // four", HostSpec("node1", slots=4)),
        ("node1\t//four", HostSpec("node1")),
        ("node1, slots=4,", HostSpec("node1", slots=4)),
    ],
)
def test_one_host(line, host):
    [parsed] = parse_hostfile(line, "hosts")
    assert parsed == HostSpec(host.name, host.slots, host.max_slots, host.user, host.port, host.python, "hosts:1")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a\n\n  \n# c\n// d\nb\n", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a,b c\td , e", ["a", "b", "c", "d", "e"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("n[5]", ["n5"]),
        ("n[0-1]", ["n0", "n1"]),
        ("n[01-02,7]x[1-2]", ["n01x1", "n01x2", "n02x1", "n02x2", "n7x1", "n7x2"]),
        ("[1-2].example.org", ["1.example.org", "2.example.org"]),
        ("10.0.0.[1-2]", ["10.0.0.1", "10.0.0.2"]),
        ("n[1,2]m,k", ["n1m", "n2m", "k"]),
    ],
)
def test_many_hosts(text, names):
    assert [host.name for host in parse_hostfile(text, "hosts")] == names


def test_an_option_belongs_to_the_host_before_it():
    hosts = parse_hostfile("a,b slots=4,c user=ann d", "hosts")
    assert [(host.name, host.slots, host.user) for host in hosts] == [
        ("a", None, None),
        ("b", 4, None),
        ("c", None, "ann"),
        ("d", None, None),
    ]


def test_every_host_of_a_range_gets_the_options():
    hosts = parse_hostfile("ann@n[1-2]:8 port=22", "hosts")
    assert hosts == [HostSpec(f"n{i}", slots=8, user="ann", port=22, origin="hosts:1") for i in (1, 2)]


@pytest.mark.parametrize(
    ("text", "slots", "max_slots"),
    [
        ("a\na\na", 3, None),
        ("a:2\na:3", 5, None),
        ("a\na:3", 4, None),
        ("a:2 max_slots=4\na:2 max_slots=3", 4, 7),
        ("a:2 max_slots=4\na:3", 5, 7),
        ("a\na max_slots=3", 2, 4),
        ("n[1,1]", 2, None),
        ("n[1-2],n[1-2]", 2, None),
    ],
)
def test_a_host_listed_again_adds_its_slots(text, slots, max_slots):
    host = parse_hostfile(text, "hosts")[0]
    assert (host.slots, host.max_slots, host.origin) == (slots, max_slots, "hosts:1")


def test_the_same_name_with_another_user_or_port_is_another_host():
    hosts = parse_hostfile("b\na\nann@a\na port=2222\na\nb", "hosts")
    assert [(str(host), host.port, host.slots) for host in hosts] == [
        ("b", None, 2),
        ("a", None, 2),
        ("ann@a", None, None),
        ("a", 2222, None),
    ]


def test_one_mention_may_name_the_python_of_all():
    assert parse_hostfile("a\na python=/x\na python=/x", "hosts")[0].python == "/x"


def test_a_host_prints_as_one_types_it():
    assert str(HostSpec("node1", slots=4)) == "node1"
    assert str(HostSpec("node1", user="ann", port=22)) == "ann@node1"


def test_a_host_list_has_the_grammar_of_a_hostfile():
    assert parse_host_list("a:2,b[01-02]:8,ann@[::1]:1 c slots=4\nd") == [
        HostSpec("a", slots=2, origin="-H"),
        HostSpec("b01", slots=8, origin="-H"),
        HostSpec("b02", slots=8, origin="-H"),
        HostSpec("::1", slots=1, user="ann", origin="-H"),
        HostSpec("c", slots=4, origin="-H"),
        HostSpec("d", origin="-H"),
    ]


def test_the_example_is_a_hostfile():
    hosts = parse_hostfile(decode_hostfile(EXAMPLE.read_bytes(), "hostfile.example"), "hostfile.example")
    by_name = {str(host): host for host in hosts}
    assert by_name["node1"].slots == 6
    assert by_name["node3"].max_slots == 8
    assert by_name["alice@node4"].slots == 2
    assert (by_name["bob@node5"].port, by_name["bob@node5"].user) == (2222, "bob")
    assert by_name["node6"].python == "/home/alice/my envs/kmeans/bin/python"
    assert [name for name in by_name if name.startswith("rack2")] == [f"rack2-n{i}" for i in ("08", "09", "10", "12")]
    assert (by_name["gpu1"].slots, by_name["gpu2"].slots) == (None, 2)
    assert {"192.0.2.17", "2001:db8::17", "2001:db8::18"} <= by_name.keys()


# ---- what is refused ----


def not_a_count(text):
    return f'slots is a whole number from 1 to 65536, not "{text}"'


COMMENT_OUT = "; to leave a host out, comment it out"


@pytest.mark.parametrize(
    ("text", "where", "culprit", "message"),
    [
        # numbers
        ("host:abc", "1:6", "abc", not_a_count("abc")),
        ("host:0", "1:6", "0", not_a_count("0") + COMMENT_OUT),
        ("a slots=0", "1:9", "0", not_a_count("0") + COMMENT_OUT),
        ("host:-1", "1:6", "-1", not_a_count("-1")),
        ("a slots=1e9", "1:9", "1e9", not_a_count("1e9")),
        ("a slots=65537", "1:9", "65537", not_a_count("65537")),
        ("a slots=٣", "1:9", "٣", not_a_count("٣")),
        ("a max_slots=x", "1:13", "x", 'max_slots is a whole number from 1 to 65536, not "x"'),
        ("a port=0", "1:8", "0", 'port is a whole number from 1 to 65535, not "0"'),
        ("a port=65536", "1:8", "65536", 'port is a whole number from 1 to 65535, not "65536"'),
        ("a slots=4 max_slots=2", "1:21", "2", "max_slots=2 is less than slots=4"),
        ("host:", "1:5", ":", 'no number of slots after ":"'),
        ("host:1:2", "1:1", "host:1:2", '"host:1:2" is neither host:slots nor an IPv6 address'),
        # keys and values
        ("a\nb\n# c\n\na user=u b slotz=4", "5:12", "slotz", 'unknown key "slotz" (did you mean slots?)'),
        ("a SLOTS=4", "1:3", "SLOTS", 'unknown key "SLOTS" (did you mean slots?)'),
        ("a usr=b", "1:3", "usr", 'unknown key "usr" (did you mean user?)'),
        ("a w=3", "1:3", "w", 'unknown key "w" (known: slots, max_slots, user, port, python)'),
        ("a slots = 4", "1:9", "=", 'no key before "=": write key=value without blanks'),
        ("a slots= 4", "1:9", "", "no value: write key=value without blanks"),
        ('a python=""', "1:10", '""', "no value: write key=value without blanks"),
        ("a slots=1 slots=2", "1:17", "2", "slots is given twice for this host"),
        ("a:1 slots=2", "1:11", "2", "slots is given twice for this host"),
        ("u@a user=v", "1:10", "v", "user is given twice for this host"),
        (
            "a\nslots=4",
            "2:1",
            "slots=4",
            "slots= before any host: an option follows its host on the same line",
        ),
        ('a python="/my venv', "1:10", '"/my venv', "the quote is not closed on this line"),
        ('a python="x"y', "1:10", '"x"y', 'quotes enclose the whole value: key="value"'),
        ('a python=x"y"', "1:10", 'x"y"', 'quotes enclose the whole value: key="value"'),
        ("a python=\x1b[2J", "1:10", "?[2J", "the path of python holds a control character"),
        ("a python=/x\na python=/y", "2:10", "/y", "a has another python at hosts:1"),
        # names
        ("a;b", "1:2", ";", 'not the name of a host: ";" cannot stand here'),
        ('"a"', "1:1", '"', "not the name of a host: '\"' cannot stand here"),
        ("-oProxyCommand", "1:1", "-", 'not the name of a host: "-" cannot stand here'),
        ("u@-x", "1:3", "-", 'not the name of a host: "-" cannot stand here'),
        ("bücher", "1:2", "ü", 'not the name of a host: "ü" cannot stand here'),
        ("a/b", "1:2", "/", 'not the name of a host: "/" cannot stand here'),
        ("a,//b", "1:3", "/", 'not the name of a host: "/" cannot stand here'),
        ("^a", "1:1", "^", 'not the name of a host: "^" cannot stand here'),
        ("\ufeffa", "1:1", "?", 'not the name of a host: "?" cannot stand here'),
        ("a 4", "1:3", "4", '"4" is a number, not a host; slots are written host:4 or slots=4'),
        ("[1-3]", "1:1", "[1-3]", '"1" is a number, not a host; slots are written host:4 or slots=4'),
        ("u@", "1:1", "u@", "the name of the host is missing"),
        (":4", "1:1", ":4", "the name of the host is missing"),
        ("@a", "1:1", "@a", 'no user before "@"'),
        ("-l@a", "1:1", "-l", '"-l" is not a user name'),
        ("a user=b;c", "1:8", "b;c", '"b;c" is not a user name'),
        # addresses
        ("[::1", "1:1", "[", 'unmatched "[": write [::1] or n[1-4,7], without blanks'),
        ("::1]", "1:4", "]", 'unmatched "]": write [::1] or n[1-4,7], without blanks'),
        ("[::1]x", "1:1", "[::1]x", '"[::1]x" is neither host:slots nor an IPv6 address'),
        ("[::1]:x", "1:7", "x", not_a_count("x")),
        ("::g", "1:1", "::g", '"::g" is neither host:slots nor an IPv6 address'),
        ("1::2::3", "1:1", "1::2::3", '"1::2::3" is neither host:slots nor an IPv6 address'),
        ("::1%;x", "1:1", "::1%;x", '"::1%;x" is neither host:slots nor an IPv6 address'),
        # ranges
        ("n[3-1]", "1:3", "3-1", "the range 3-1 runs backwards: write 1-3"),
        ("n[1,a-b]", "1:5", "a-b", '"a-b" is not a range: write 7 or 01-04'),
        ("n[1:3]", "1:3", "1:3", '"1:3" is not a range: write 7 or 01-04'),
        ("n[]", "1:3", "]", "a range is missing: write 7 or 01-04"),
        ("n[1,]", "1:5", "]", "a range is missing: write 7 or 01-04"),
        ("n[1-010]", "1:3", "1-010", "pad both ends of 1-010 to the same number of digits"),
        ("n[1, 2]", "1:2", "[", 'unmatched "[": write [::1] or n[1-4,7], without blanks'),
        ("n[1[2]]", "1:2", "[", 'unmatched "[": write [::1] or n[1-4,7], without blanks'),
        ("n[1]-[2]; b", "1:9", ";", 'not the name of a host: ";" cannot stand here'),
    ],
)
def test_refused_with_its_place(text, where, culprit, message):
    error = refusal(parse_hostfile, text, "hosts")
    assert error.split("\n")[0] == f"hosts:{where}: {message}"
    assert under_the_carets(error).rstrip() == culprit


def test_an_error_shows_the_line_and_points_at_the_culprit():
    assert refusal(parse_hostfile, "node1\nnode07 slots=4\tslotz=2  # two\r\nnode2", "etc/hosts") == (
        'etc/hosts:2:16: unknown key "slotz" (did you mean slots?)\n'
        "    node07 slots=4 slotz=2  # two\n"
        "                   ^^^^^"
    )


def test_an_error_in_a_host_list_counts_columns_only():
    assert refusal(parse_host_list, "a:2,b:x") == (
        '-H:7: slots is a whole number from 1 to 65536, not "x"\n    a:2,b:x\n          ^'
    )


def test_a_host_list_has_no_comments():
    assert refusal(parse_host_list, "a#b").startswith("-H:2: a list of hosts has no comments\n")


@pytest.mark.parametrize("text", ["", "\n", "# node1\n\n // node2\n", " , "])
def test_a_hostfile_without_hosts_is_refused(text):
    assert refusal(parse_hostfile, text, "hosts") == (
        "hosts: the file names no host; write lines such as: node1 slots=4"
    )


@pytest.mark.parametrize("text", ["", " ", ",,"])
def test_a_host_list_without_hosts_is_refused(text):
    assert refusal(parse_host_list, text).startswith("-H: the list names no host; write")


@pytest.mark.parametrize(("before", "after"), [(0, 500), (30, 500), (200, 200), (500, 0)])
def test_of_a_long_line_the_part_around_the_culprit_is_shown(before, after):
    error = refusal(parse_hostfile, f"{'a ' * (before // 2)}b;c{' a' * (after // 2)}", "hosts")
    _, line, _ = error.split("\n")
    assert error.startswith(f"hosts:1:{before + 2}: ")
    assert len(line.removeprefix("    ")) <= EXCERPT
    assert "b;c" in line
    assert under_the_carets(error) == ";"


def test_a_long_culprit_is_cut_short_everywhere():
    error = refusal(parse_hostfile, f"a slots={'9' * 5000}", "hosts")
    assert max(len(line) for line in error.split("\n")) <= 4 + EXCERPT


# ---- bytes ----


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"node1\n", "node1\n"), (b"\xef\xbb\xbfnode1", "node1"), ("a # ü".encode(), "a # ü"), (b"", "")],
)
def test_a_hostfile_is_utf8_with_or_without_a_mark(data, text):
    assert decode_hostfile(data, "hosts") == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\nbc\0d", "hosts:2:3: a NUL byte: this is no text file, or one saved as UTF-16"),
        ("node1\n".encode("utf-16"), "hosts:1:4: a NUL byte: this is no text file, or one saved as UTF-16"),
        (b"a\nb # caf\xe9\nc", "hosts:2:8: byte 0xe9 is not UTF-8"),
        (b"\xef\xbb\xbfab\xff", "hosts:1:3: byte 0xff is not UTF-8"),
        ("ü # \xe9".encode() + b"\xc3", "hosts:1:6: byte 0xc3 is not UTF-8"),
    ],
)
def test_what_is_not_utf8_is_refused_with_its_place(data, message):
    assert refusal(decode_hostfile, data, "hosts").split("\n")[0] == f"{message}; save the hostfile as UTF-8"


def test_the_caret_points_at_the_byte_that_is_not_utf8():
    assert refusal(decode_hostfile, b"a\nb # caf\xe9!\nc", "hosts").endswith("\n    b # caf\ufffd!\n           ^")


# ---- size ----


@pytest.mark.parametrize(
    ("text", "where", "count"),
    [
        ("n[1-99999999]", "1:1", "99999999 hosts"),
        ("n[1-101]x[1-100]", "1:1", "10100 hosts"),
        ("n[1-9999,1-9999]", "1:1", "19998 hosts"),
        ("n[1-6000]\nm[1-6000]", "2:1", "6000 hosts, after 6000 before it"),
        ("n[1-10000]\n" * 2, "2:1", "10000 hosts, after 10000 before it"),
    ],
)
def test_ranges_are_counted_before_they_are_expanded(text, where, count):
    error = refusal(parse_hostfile, text, "hosts")
    assert error.startswith(f"hosts:{where}: ")
    assert f"stands for {count}; ranges may name {MAX_RANGE_NAMES} in all\n" in error


def test_ranges_may_name_as_many_hosts_as_the_limit_says():
    assert len(parse_host_list(f"n[1-{MAX_RANGE_NAMES - 1}],m[7]")) == MAX_RANGE_NAMES


def test_only_ranges_count_against_the_limit():
    text = "".join(f"node{number} [::{number:x}]:2\n" for number in range(MAX_RANGE_NAMES)) + "n[1-10000]"
    assert len(parse_hostfile(text, "hosts")) == 3 * MAX_RANGE_NAMES


@pytest.mark.parametrize("name", ["n" * 254, "n" * 250 + "[1-1000]", "n" + "[1]" * 253])
def test_a_name_fits_into_dns(name):
    assert "characters; host names have at most 253" in refusal(parse_host_list, name)


def test_a_hundred_thousand_lines_take_about_a_second():
    text = "".join(f"node{number:06d} slots=4\n" for number in range(100_000))
    before = time.process_time()
    assert len(parse_hostfile(text, "hosts")) == 100_000
    assert time.process_time() - before < 5  # seen: 0.7 s; the slack is for slow machines, not for a square


@pytest.mark.parametrize(
    "text",
    ["[", "n[", '="', 'a="b ', "[1]", "a@", ":", "//", " //", "#", "[1,", "x=", "a=", "@", "]", "[1-9]", '"'],
)
def test_repetitive_nonsense_takes_linear_time(text):
    before = time.process_time()
    with pytest.raises(LaunchError):
        parse_hostfile(text * 100_000, "hosts")
    assert time.process_time() - before < 5  # seen: at most 0.1 s


# ---- any text at all ----

FRAGMENTS = st.sampled_from(
    ["a", "n[1-3]", "[::1]", "::1", ":", ":4", ",", "#", "//", "@", "u@", "=", '"', "-", "[", "]", "4", "é"]
)  # fmt: skip
KEYS = st.sampled_from(["slots=", "max_slots=", "port=", "user=", "python=", "slotz=", 'python="'])
BLANKS = st.sampled_from([" ", "\n", "\t", "\r\n"])
TEXTS = st.lists(FRAGMENTS | KEYS | BLANKS | st.characters(), max_size=30).map("".join)


@settings(deadline=None)
@given(TEXTS)
def test_only_launch_errors_leave_the_parser(text):
    for parsed in (outcome(parse_hostfile, text, "hosts"), outcome(parse_host_list, text)):
        if isinstance(parsed, LaunchError):
            assert parsed.status == 2
        else:
            check(parsed)


def check(hosts):
    assert hosts
    assert len({(host.name, host.user, host.port) for host in hosts}) == len(hosts)
    for host in hosts:
        assert host.name.isascii()
        assert host.name.isprintable()
        assert not host.name.startswith("-")
        assert host.slots is None or host.slots >= 1
        assert host.max_slots is None or host.max_slots >= (host.slots or 1)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_only_launch_errors_leave_the_decoder(data):
    decoded = outcome(decode_hostfile, data, "hosts")
    if isinstance(decoded, LaunchError):
        assert under_the_carets(str(decoded)) in {"?", "\ufffd"}
    else:
        assert decoded.encode() == data.removeprefix(b"\xef\xbb\xbf")


@settings(deadline=None)
@given(TEXTS)
def test_the_caret_never_leaves_the_excerpt(text):
    _, line, carets = refusal(parse_host_list, text.replace("#", "") + ",a;").split("\n")
    assert len(line) <= 4 + EXCERPT
    assert len(carets) <= 4 + EXCERPT + 1


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
SPECS = st.lists(
    st.builds(
        HostSpec,
        name=NAMES,
        slots=st.none() | st.integers(1, 65536),
        user=st.none() | NAMES,
        port=st.none() | st.integers(1, 65535),
        python=st.none() | st.sampled_from(["python3", "/my venv/bin/python"]),
        origin=st.just("-H"),
    ),
    min_size=1,
    unique_by=lambda host: (host.name, host.user, host.port),
)


def written(host):
    options = [f'{key}="{getattr(host, key)}"' for key in ("port", "python") if getattr(host, key) is not None]
    return " ".join([str(host) if host.slots is None else f"{host}:{host.slots}", *options])


@settings(deadline=None)
@given(SPECS)
def test_what_is_written_is_read_back(hosts):
    assert parse_host_list(",".join(written(host) for host in hosts)) == hosts


# ---- this machine ----


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "127.0.0.1", "127.8.9.1", "::1", "head", "Head.example"])
def test_this_machine_is_local(name):
    assert is_local(HostSpec(name, slots=4, python="python3"), ["head", "head.Example"])


@pytest.mark.parametrize(
    "host",
    [
        HostSpec("node1"),
        HostSpec("128.0.0.1"),
        HostSpec("::2"),
        HostSpec("localhost.example.org"),
        HostSpec("localhost", user="ann"),
        HostSpec("127.0.0.1", port=2222),
        HostSpec("head", user="ann"),
    ],
)
def test_another_machine_or_account_is_not_local(host):
    assert not is_local(host, {"head"})
