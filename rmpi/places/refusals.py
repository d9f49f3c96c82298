"""The ways a host refuses to carry a node, in words: what is wrong, and what to do about it.

The paramiko booter and the ``--rsh-agent`` booter learn of a failure by different roads (an exception; a line on
somebody's stderr) and must tell the user the same thing. So every text stands here, once, as a function from
facts to `HostFailed`. Nothing here connects, retries or prints: `boot_all` decides about retries from `Again`, and
sets the texts of all bad hosts into one table, where each takes one line.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Sequence

from rmpi.errors import LaunchError

SSH_PORT = 22


class Again(enum.Enum):
    """Whether the same thing tried once more might go better."""

    NEVER = enum.auto()
    PATIENTLY = enum.auto()  # perhaps the host is still coming up: while the caller's patience lasts
    OFTEN = enum.auto()  # the host is there and busy: back off, and come again several times


class HostFailed(LaunchError):
    """One host cannot be used.

    Attributes:
        what: What is wrong, one line, without the name of the host.
        fix: What to do, one line; often a command to copy.
        again: Whether a retry makes sense.
    """

    def __init__(self, what: str, fix: str, *, again: Again = Again.NEVER) -> None:
        super().__init__(f"{what}: {fix}")
        self.what = what
        self.fix = fix
        self.again = again


# --- The network --------------------------------------------------------------------------------------------


def unresolved(name: str, *, temporary: bool = False) -> HostFailed:
    if temporary:
        return HostFailed(
            f"the name server did not answer for {name!r}",
            "try again, or give the host's address in the hostfile",
            again=Again.PATIENTLY,
        )
    return HostFailed(
        f"the name {name!r} does not resolve",
        f"check the spelling with: getent hosts {shlex.quote(name)}",
        again=Again.PATIENTLY,
    )


def refused(where: str) -> HostFailed:
    return HostFailed(
        f"connection refused by {where}",
        "no sshd listens there: start it, or say port=N in the hostfile",
        again=Again.PATIENTLY,
    )


def silent(where: str, seconds: float | None = None) -> HostFailed:
    """``seconds`` is None when only the agent knows how long it waited."""
    waited = "" if seconds is None else f" within {seconds:.3g} s"
    return HostFailed(
        f"no answer from {where}{waited}",
        "the host is down, or a firewall drops the packets: try another address or port",
    )


def unreachable(where: str, reason: str) -> HostFailed:
    return HostFailed(
        f"cannot reach {where} ({reason.lower()})",
        "check the address and the route to it",
        again=Again.PATIENTLY,
    )


def dropped(where: str) -> HostFailed:
    return HostFailed(
        f"sshd at {where} dropped the login before it began",
        "raise MaxStartups in its sshd_config, or log in to fewer hosts at a time with --max-parallel-ssh",
        again=Again.OFTEN,
    )


def not_ssh(where: str, greeting: str) -> HostFailed:
    said = f"greets with {greeting!r}" if greeting else "accepts connections but never greets"
    return HostFailed(f"{where} {said}: that is not sshd", "say port=N in the hostfile, or Port in ~/.ssh/config")


def no_common_algorithm(where: str, reason: str) -> HostFailed:
    return HostFailed(
        f"could not agree with {where} on how to encrypt ({reason})",
        "update its sshd, or use --rsh-agent ssh",
    )


# --- Host keys ----------------------------------------------------------------------------------------------


def unknown_key(name: str, port: int, kind: str, fingerprint: str, known_hosts: str) -> HostFailed:
    """``fingerprint`` is empty when only the agent saw the key."""
    shown = f" ({kind} {fingerprint})" if fingerprint else ""
    return HostFailed(
        f"its host key is not known{shown}",
        f"if that is the host's key, accept it with --host-key-policy accept-new, "
        f"or: {keyscan(name, port)} >> {known_hosts}",
    )


def changed_key(name: str, fingerprint: str, where: str) -> HostFailed:
    """``where`` is ``file:line`` of the key that was expected."""
    shown = f" to {fingerprint}" if fingerprint else ""
    return HostFailed(
        f"ITS HOST KEY HAS CHANGED{shown}, {where} has another: reinstalled, or somebody listens in between",
        f"ask its administrator; only if the change was meant: ssh-keygen -R {shlex.quote(name)}",
    )


def revoked_key(fingerprint: str, where: str) -> HostFailed:
    return HostFailed(
        f"ITS HOST KEY {fingerprint} IS REVOKED by {where}",
        "do not connect; ask its administrator for a new host key",
    )


def keyscan(name: str, port: int) -> str:
    """The command that prints the host's keys in known_hosts form."""
    option = "" if port == SSH_PORT else f" -p {port}"
    return f"ssh-keyscan{option} {shlex.quote(name)}"


# --- Who are you --------------------------------------------------------------------------------------------


def denied(user: str, tried: Sequence[str], locked: Sequence[str] = ()) -> HostFailed:
    """``tried`` and ``locked`` name keys: the ones the host refused, the ones that need a passphrase first."""
    if locked and not tried:
        return HostFailed(
            f"permission denied for user {user}: the key {locked[0]} needs its passphrase",
            f"unlock it once: ssh-add {shlex.quote(locked[0])} (an ssh-agent must run), or use --rsh-agent ssh",
        )
    keys = f"tried {', '.join(tried)}" if tried else "there is no key to try"
    more = f"; {', '.join(locked)} needs a passphrase" if locked else ""
    unlock = f", or unlock the key: ssh-add {shlex.quote(locked[0])}" if locked else ""
    return HostFailed(
        f"permission denied for user {user} ({keys}{more})",
        f"put your public key there with ssh-copy-id, or say user=NAME in the hostfile{unlock}",
    )


def wrong_method(user: str, methods: Sequence[str], *, after_key: bool = False) -> HostFailed:
    """The host asks for a password or a second factor, which nobody is there to type."""
    wants = " or ".join(methods) or "nothing we know"
    what = f"wants {wants} after the key" if after_key else f"accepts no keys, only {wants}"
    return HostFailed(
        f"{what} (user {user})",
        "log in once by hand with ControlMaster and ControlPersist in ~/.ssh/config, then use --rsh-agent ssh",
    )


def no_command(reason: str) -> HostFailed:
    return HostFailed(
        f"logged in, but sshd would not run a command ({reason})",
        "look for ForceCommand or a restricted shell in that account",
    )


def bad_name(name: str) -> HostFailed:
    return HostFailed(f"{name!r} cannot be a host name", "names do not begin with '-'")


def no_agent(program: str, reason: str) -> HostFailed:
    return HostFailed(f"the agent {program!r} does not start ({reason})", "correct --rsh-agent")


# --- Logged in, and yet no node -----------------------------------------------------------------------------


def not_in_time(doing: str) -> HostFailed:
    return HostFailed(f"not up in time, still {doing}", "look at the host, or raise --start-timeout")


def ended_early(last_words: str, status: int | None) -> HostFailed:
    code = "" if status is None else f" with status {status}"
    said = f": {last_words}" if last_words else ""
    return HostFailed(
        f"the session ended{code} before a node answered{said}",
        "try by hand: ssh to the host and run python3 -c 'import rmpi'",
    )


def no_interpreter(tried: Sequence[str], path: str) -> HostFailed:
    return HostFailed(
        f"no Python among {', '.join(tried) or '(nothing)'} (PATH there: {path})",
        "install it there, or say python=/path/to/python in the hostfile",
    )


def too_old(executable: str, version: str) -> HostFailed:
    return HostFailed(
        f"{executable} is Python {version}, rmpi needs 3.11",
        "say python=/path/to/a/newer/python in the hostfile",
    )


def other_python(executable: str, version: str, ours: str) -> HostFailed:
    return HostFailed(
        f"{executable} is Python {version}, the launcher runs {ours}: pickles do not travel between them",
        f"say python=/path/to/python{ours} in the hostfile",
    )


def lacks(executable: str, package: str, requirement: str) -> HostFailed:
    return HostFailed(
        f"{executable} lacks {package}",
        f"install it there: {shlex.quote(executable)} -m pip install {requirement}",
    )


def does_not_import(executable: str, reason: str) -> HostFailed:
    return HostFailed(
        f"rmpi does not import in {executable} ({reason})",
        f"try there: {shlex.quote(executable)} -c 'import rmpi.places.remote'",
    )


def other_wire(theirs: str, their_wire: int, our_wire: int, ours: str) -> HostFailed:
    return HostFailed(
        f"runs rmpi {theirs} (wire {their_wire}), launcher wire {our_wire}",
        f"install the same version on both: pip install rmpi=={ours}",
    )


def babble(line: str) -> HostFailed:
    return HostFailed(
        f"answered what this rmpi does not understand: {line}",
        "install the same version of rmpi on both sides",
    )


def noisy(last_words: str) -> HostFailed:
    return HostFailed(
        f"its shell prints without end before the node answers: {last_words}",
        "make its start-up files (.bashrc) quiet for non-interactive shells",
    )
