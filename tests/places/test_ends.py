"""What an exit status means for the job."""

import pytest

from rmpi.places.ends import LEFT_WITHOUT_FINISHING, End, end_of, signal_name


@pytest.mark.parametrize(
    ("status", "code", "cause"),
    [
        (0, 0, "finished"),
        (1, 1, "exit status 1"),
        (255, 255, "exit status 255"),
        (-9, 137, "killed by SIGKILL"),
        (-11, 139, "killed by SIGSEGV"),
        (-15, 143, "killed by SIGTERM"),
        (-50, 178, "killed by signal 50"),
    ],
)
def test_the_code_is_the_rank_s_own_or_128_plus_the_signal(status, code, cause):
    end = end_of(status, joined=True, left=True)
    assert end == End(code, cause)
    assert end.failed == (code != 0)


def test_exit_status_0_in_the_middle_of_the_job_is_a_failure():
    end = end_of(0, joined=True, left=False)
    assert end.failed
    assert end.code == LEFT_WITHOUT_FINISHING == 70
    assert "without finishing" in end.cause


def test_a_program_that_never_joined_need_not_leave():
    assert not end_of(0, joined=False, left=False).failed


@pytest.mark.parametrize("status", [3, -9])
def test_a_bad_status_says_more_than_having_left_or_not(status):
    assert end_of(status, joined=True, left=False) == end_of(status, joined=True, left=True)


def test_signals_have_names_where_they_have_one():
    assert signal_name(2) == "SIGINT"
    assert signal_name(99) == "signal 99"
