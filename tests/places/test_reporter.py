"""How a rank's uncaught exception is told: what its author would have seen without us, once."""

import sys
import threading

import pytest

from rmpi.places.control import PACKET, Control, control_pair
from rmpi.places.messages import Crashed
from rmpi.places.program import run_program
from rmpi.places.reporter import TEXT_LIMIT, Reporter, shortened


@pytest.fixture
def ends():
    """Two control ends: the rank's and its router's."""
    both = [Control(sock) for sock in control_pair()]
    yield both
    for end in both:
        end.close()


@pytest.fixture
def reporter(ends, monkeypatch):
    """The reporter of a rank, installed; afterwards this process is as before."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    reporter = Reporter(ends[0])
    reporter.install()
    return reporter


@pytest.fixture
def crash(ends, reporter):
    """``crash(kind, target)`` runs a program that raises, and returns what its router hears."""

    def report(kind, target):
        try:
            run_program(kind, str(target), (str(target),))
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        assert reporter.crashed
        [(message, _)] = ends[1].receive()
        assert isinstance(message, Crashed)
        return message

    return report


@pytest.fixture
def script(tmp_path):
    def write(text, name="script.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# -- what is told -------------------------------------------------------------------------------------------


def test_the_text_is_what_python_prints_for_the_script_alone(crash, script):
    path = script("def half(x):\n    return x / 0\n\nhalf(3)\n")
    message = crash("script", path)
    assert message.kind == "ZeroDivisionError"
    assert not message.consequence
    assert message.text.splitlines()[:2] == [
        "Traceback (most recent call last):",
        f'  File "{path}", line 4, in <module>',
    ]
    assert message.text.endswith("ZeroDivisionError: division by zero\n")
    assert "rmpi" not in message.text


def test_code_keeps_all_its_own_frames(crash):
    message = crash("code", "def main():\n    raise ValueError('x')\nmain()")
    assert message.text == (
        "Traceback (most recent call last):\n"
        '  File "<string>", line 3, in <module>\n'
        '  File "<string>", line 2, in main\n'
        "ValueError: x\n"
    )


@pytest.mark.parametrize("kind", ["module", "script"])
def test_runpy_s_frames_are_not_the_program_s(crash, script, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crashing").mkdir()
    path = script("1 / 0", "crashing/__main__.py")
    script("", "crashing/__init__.py")
    message = crash(kind, "crashing" if kind == "module" else tmp_path / "crashing")
    assert message.text.splitlines()[1] == f'  File "{path}", line 1, in <module>'
    sys.modules.pop("crashing", None)


def test_a_syntax_error_has_no_frames_but_its_place(crash, script):
    message = crash("script", script("def broken(:\n"))
    assert message.kind == "SyntaxError"
    assert "line 1" in message.text
    assert "program.py" not in message.text


def test_an_error_of_ours_ends_where_the_program_called_us(crash, script):
    path = script("from rmpi.deadline import Deadline\nDeadline.after('soon')\n")
    message = crash("script", path)
    assert f'File "{path}", line 2' in message.text
    assert message.text.count("File ") == 1
    assert "timeout must be seconds" in message.text


def test_an_error_of_the_program_inside_our_code_keeps_our_frames(crash, script):
    path = script(
        "from rmpi.deadline import Deadline\n"
        "class Odd:\n    def __float__(self):\n        raise OSError('odd')\n"
        "Deadline.after(Odd())\n"
    )
    message = crash("script", path)
    assert "deadline.py" in message.text
    assert message.text.count("File ") == 3


def test_causes_are_told_too(crash, script):
    path = script("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('k') from error\n")
    text = crash("script", path).text
    assert text.index("ZeroDivisionError") < text.index("direct cause") < text.index("KeyError: 'k'")


@pytest.mark.parametrize(
    ("raised", "consequence"),
    [("RankFailed(1, 'n2', 'killed by SIGKILL')", True), ("PeerLost('gone')", True), ("WireError('no')", False)],
)
def test_the_failure_of_another_rank_is_a_consequence(crash, script, raised, consequence):
    path = script(f"from rmpi.errors import *\nraise {raised}\n")
    assert crash("script", path).consequence == consequence


@pytest.mark.parametrize("text", ["'\\udce9'", "'\\ud800'", "'✓ 😀'"])
def test_any_text_can_be_told(crash, script, text):
    message = crash("script", script(f"raise ValueError({text})"))
    message.text.encode()  # it can be printed
    assert "ValueError: " in message.text


def test_a_long_text_arrives_with_its_middle_cut_out(crash, script):
    message = crash("script", script("raise ValueError('\\U0001f600' * 1_000_000 + 'the end')"))
    assert message.text.endswith("the end\n")
    assert "characters left out" in message.text
    assert len(message.text) < TEXT_LIMIT + 100
    assert len(message.text.encode()) > PACKET


def test_a_short_text_stays_as_it_is():
    assert shortened("x" * TEXT_LIMIT) == "x" * TEXT_LIMIT
    cut = shortened("a" * TEXT_LIMIT + "b")
    assert cut.startswith("a" * (TEXT_LIMIT // 2) + "\n")
    assert cut.endswith("b")
    assert "  … 1 characters left out …\n" in cut


# -- who tells it -------------------------------------------------------------------------------------------


def test_a_hook_of_the_program_stays(ends, monkeypatch):
    mine = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: mine.append(args))
    Reporter(ends[0]).install()
    sys.excepthook(ValueError, ValueError("x"), None)
    assert len(mine) == 1
    assert ends[1].receive() == []


def test_without_a_router_python_prints(ends, reporter, capsys):
    ends[0].close()
    sys.excepthook(ValueError, ValueError("nobody listens"), None)
    assert capsys.readouterr().err == "ValueError: nobody listens\n"
    assert reporter.crashed


@pytest.mark.usefixtures("reporter")
def test_the_report_waits_for_a_slow_router(ends):
    """It is the last thing this process does: what is not out then is never told."""
    while ends[0].send(Crashed("filler", "x" * 1000, False)):
        pass
    told = threading.Thread(target=sys.excepthook, args=(ValueError, ValueError("at last"), None))
    told.start()
    heard = []
    while not heard or heard[-1].kind != "ValueError":
        heard += [message for message, _ in ends[1].receive()]
    told.join()
    assert heard[-1].text == "ValueError: at last\n"
