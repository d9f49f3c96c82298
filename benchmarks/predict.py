"""What collectives would cost on 2 to 65,536 ranks, next to what they do cost on the few that fit here.

    python benchmarks/predict.py [--quick] [--anyway]

It measures messages between two ranks, fits the parameters of `rmpi.testing.clock` to them, runs the schedules of the
collectives under that clock, measures the same collectives, and writes ``predicted.json``, ``predicted.png`` and the
tables in the README, which has the method. On an idle machine it takes less than five minutes, ``--quick`` half of one.

Four parts: `measure`, `fitted`, `predict`, and the text. ``predict_ranks.py`` is what the measured ranks run,
``predict_rows.py`` says which collectives, ``predict_plot.py`` draws.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from compare import MOST_LOAD, answer, machine, run_here
from peers import ENVIRONMENTS, MATPLOTLIB, environment, shown
from predict_rows import VERBS, Rank, Row, has_two_levels, machines, rows
from table import duration

from rmpi.comm.ops import SUM
from rmpi.testing.clock import Charged, Cost, Cpu, Level, Network, simulate_cost
from rmpi.wire.frames import EAGER_LIMIT

HERE = Path(__file__).resolve().parent
RANKS = str(HERE / "predict_ranks.py")
README = HERE / "README.md"
BEGIN, END = "<!-- predicted.md -->", "<!-- end of predicted.md -->"

TIMEOUT = 120.0
"""Seconds that a job may take; it has failed then."""

# --- What is assumed -----------------------------------------------------------------------------------------------

RANKS_PER_MACHINE = 32
"""In the cluster that nobody has measured: each with a core of its own."""

WIRE_LATENCY = 5e-6
"""Seconds that two network cards and a switch add to what tcp takes on the loopback. Assumed."""

PORT = 1 / 12.5e9
"""Seconds per byte that all ranks of a machine share: 100 Gbit/s. Assumed."""

SIZES = [2, 4, 8, 16, 32, 64, 100, 128, 256, 512, 1000, 1024, 4096, 5000, 16384, 65536]
SHOWN = [2, 8, 32, 64, 256, 512, 1000, 1024, 4096, 16384, 65536]
"""Those in the table; the plot has all."""

MOST_MESSAGES = 2_200_000
"""That a run may be expected to have; each takes some 20 µs to simulate."""

MOST_ON_TWO_LEVELS = 400_000
"""The same for algorithms of two levels: those that send as many as the others are also much like them."""

MOST_ROUNDS = 600
"""Messages that each rank may be expected to send: n rounds of n ranks are simulated for so many ranks."""

MOST_REFERENCES = 32_000_000
"""Arrays that all ranks together get: the simulator has no arrays, but a reference to each."""

MOST_RESULT = 16 << 30
"""Bytes that the rank which gets most gets: what a machine might have."""


@dataclass(frozen=True)
class Layout:
    """Ranks that run here.

    Attributes:
        name: Of its columns.
        ranks: How many.
        tcp: Each is on a node of its own, and what they say goes over the loopback.
    """

    name: str
    ranks: int
    tcp: bool = False

    @property
    def words(self) -> list[str]:
        return [*_launch(self.ranks), *(TWO_NODES if self.tcp else [])]


TWO_NODES = ["-H", "a@127.0.0.1,b@127.0.0.1", "--rsh-agent", f"{sys.executable} {HERE / 'loopback_agent.py'}"]
LAYOUTS = [Layout("2 ranks", 2), Layout("4 ranks", 4), Layout("8 ranks", 8), Layout("2 ranks, tcp", 2, tcp=True)]


def _launch(ranks: int) -> list[str]:
    return [sys.executable, "-m", "launcher", "-q", "-n", str(ranks)]


@dataclass(frozen=True)
class Effort:
    """How much is done: repeats of what is measured, batches in each, seconds for each row; and ranks simulated."""

    repeats: int
    batches: int
    batch: float
    most_ranks: int


QUICK = Effort(repeats=1, batches=3, batch=0.03, most_ranks=1024)
DEFAULT = Effort(repeats=3, batches=7, batch=0.1, most_ranks=65536)

# --- Measuring -----------------------------------------------------------------------------------------------------


def measure(effort: Effort) -> dict[str, Any]:
    """All that is measured, in turn: every repeat goes through everything."""
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    batches, batch = ["--batches", str(effort.batches)], ["--batch", str(effort.batch)]
    jobs = {
        "shm": [*_launch(2), RANKS, "link", *batches],
        "tcp": [*_launch(2), *TWO_NODES, RANKS, "link", *batches],
        "one core": [*one_core, *_launch(2), RANKS, "ping", *batches],
        "core": [*_launch(1), RANKS, "core", *batches],
        **{layout.name: [*layout.words, RANKS, "collectives", *batch] for layout in LAYOUTS},
    }
    taken: dict[str, list[Any]] = {name: [] for name in jobs}
    for repeat in range(effort.repeats):
        for name, words in jobs.items():
            print(f"{repeat + 1}/{effort.repeats} {name}", file=sys.stderr, flush=True)
            taken[name].append(_figures(words))
    return {name: _medians(series) for name, series in taken.items()}


def _figures(words: Sequence[str]) -> Any:
    done = run_here(words, TIMEOUT)
    if done.returncode:
        sys.exit(f"failed: {shown(words)}\n{done.stderr}")
    return answer(done.stdout)


def _medians(series: list[Any]) -> Any:
    """Of dictionaries of one shape: a dictionary of medians."""
    if isinstance(series[0], dict):
        return {key: _medians([each[key] for each in series]) for key in series[0]}
    return statistics.median(series)


# --- Fitting -------------------------------------------------------------------------------------------------------


def fitted(taken: dict[str, Any]) -> tuple[Network, dict[str, float]]:
    """The parameters that come closest to what was measured between two ranks, and how close they come.

    Returns:
        The network here, where another node is over the loopback; and by level the largest factor by which a message
        of some size takes longer or shorter than that says.
    """
    shm, tcp = fitted_level(taken["shm"]), fitted_level(taken["tcp"])
    pair = 2 * shm.overhead + shm.latency
    cpu = Cpu(
        **taken["core"],
        item=max(0.0, taken["shm"]["item"]),
        switch=max(0.0, taken["one core"]["one way"] - pair),
    )
    return Network(shm, tcp, cpu), {"shm": worst(shm, taken["shm"]), "tcp": worst(tcp, taken["tcp"])}


def fitted_level(taken: dict[str, Any]) -> Level:
    """o is seen directly, L is the rest of a small message, and G and the round trip are fitted to larger ones.

    Where both work on a message at the same time, their o together may exceed what it takes; then each is half of it.
    The fit is of least squares of relative errors. A round trip that comes out negative is none.
    """
    sizes = np.array([int(size) for size in taken["ping"]])
    seconds = np.array(list(taken["ping"].values()))
    small = float(seconds[0])
    overhead = min(taken["send"] + taken["recv"], small) / 2
    rest, columns = seconds[1:], [sizes[1:] - sizes[0], sizes[1:] > EAGER_LIMIT]
    byte_gap, rendezvous = _fit(columns, rest - small, rest)
    if rendezvous < 0:
        (byte_gap,), rendezvous = _fit(columns[:1], rest - small, rest), 0.0
    return Level(
        latency=small - 2 * overhead,
        overhead=overhead,
        gap=taken["stream"],
        byte_gap=float(byte_gap),
        rendezvous=float(rendezvous),
        copied=True,
    )


def _fit(columns: list[Any], wanted: Any, scale: Any) -> Any:
    """What the columns are to be multiplied with, so that their sum is as wanted, on the scale of each."""
    matrix = np.stack(columns, axis=1) / scale[:, None]
    return np.linalg.lstsq(matrix, wanted / scale, rcond=None)[0]


def worst(level: Level, taken: dict[str, Any]) -> float:
    """The largest factor between what the level says of a message, and what was measured."""
    factors: list[float] = []
    for size, seconds in taken["ping"].items():
        asked = level.round_trip if int(size) > EAGER_LIMIT else 0.0
        said = 2 * level.overhead + level.latency + asked + (int(size) - 1) * level.byte_gap
        factors.append(max(said / seconds, seconds / said))
    return max(factors)


def cluster(here: Network) -> Network:
    """The cluster that is assumed: cores and memory as here, tcp over a network instead of the loopback."""
    tcp = {**asdict(here.remote), "latency": here.remote.latency + WIRE_LATENCY, "port": PORT}
    return Network(here.local, Level(**tcp), here.cpu)


# --- Predicting ----------------------------------------------------------------------------------------------------


def cost_of(
    row: Row,
    size: int,
    network: Network,
    machine_of: Sequence[int],
    *,
    two_levels: bool = False,
    **options: Any,
) -> Cost[Any]:
    """One call of it. ``two_levels``: the algorithm is told which ranks share a machine."""
    operator = Charged(SUM, phantom=True)
    mine, out = row.mine, np.empty_like(row.mine)
    known = machines(machine_of) if two_levels else {}
    schedule = VERBS[row.verb].schedule
    return simulate_cost(
        lambda rank: schedule(Rank(rank, size, mine, out, operator, known)),
        size,
        network,
        machine_of=machine_of,
        operator=operator,
        phantom=True,
        **options,
    )


def predict_here(row: Row, layout: Layout, network: Network) -> float:
    """What `predict_ranks.collectives` measures: a call after a barrier, on the rank where it takes longest.

    Ranks share the cores that this machine has.
    """
    cores = len(os.sched_getaffinity(0))
    ranks = range(layout.ranks)
    where: Any = {
        "machine_of": [rank if layout.tcp else 0 for rank in ranks],
        "core_of": [rank % cores for rank in ranks],
    }
    came = cost_of(Row("barrier", 0), layout.ranks, network, **where).times
    ended = cost_of(row, layout.ranks, network, **where, start=came).times
    return max(end - begin for begin, end in zip(came, ended, strict=True))


@dataclass(frozen=True)
class Curve:
    """One row over sizes, on the cluster."""

    row: Row
    two_levels: bool

    @property
    def label(self) -> str:
        return f"{self.row.label}, two levels" if self.two_levels else self.row.label


def curves() -> list[Curve]:
    return [
        Curve(row, two_levels)
        for row in rows()
        for two_levels in ((False, True) if has_two_levels(row.verb) else (False,))
    ]


def predict(network: Network, most_ranks: int) -> dict[str, dict[int, float]]:
    """All curves, by label, on as many cores as there are; the longest first."""
    todo = curves()
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        longest_first = sorted(todo, key=lambda curve: -curve.row.nbytes)
        futures = {curve: workers.submit(seconds_by_size, curve, network, most_ranks) for curve in longest_first}
        return {curve.label: futures[curve].result() for curve in todo}


def seconds_by_size(curve: Curve, network: Network, most_ranks: int) -> dict[int, float]:
    """As far as it can be simulated, and a machine could hold the result."""
    found: dict[int, float] = {}
    messages: dict[int, int] = {}
    for size in SIZES:
        if size > most_ranks or not is_feasible(curve, size, expected(messages, size)):
            break
        where = [rank // RANKS_PER_MACHINE for rank in range(size)]
        cost = cost_of(curve.row, size, network, where, two_levels=curve.two_levels)
        found[size], messages[size] = cost.seconds, cost.messages
    print(f"predicted {curve.label}, up to {max(found)} ranks", file=sys.stderr, flush=True)
    return found


def is_feasible(curve: Curve, size: int, messages: float) -> bool:
    most = MOST_ON_TWO_LEVELS if curve.two_levels else MOST_MESSAGES
    return (
        messages <= min(most, MOST_ROUNDS * size)
        and curve.row.result_bytes(size) <= MOST_RESULT
        and curve.row.references(size) <= MOST_REFERENCES
    )


def expected(messages: dict[int, int], size: int) -> float:
    """How many messages that many ranks will send, if they go on growing as they did."""
    if len(messages) < 2:
        return 0.0
    (before, less), (last, more) = list(messages.items())[-2:]
    power = log(more / less) / log(last / before)
    return float(more * (size / last) ** min(2.0, max(1.0, power)))


# --- What is said about it -----------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> str:
    """Markdown: the parameters, predicted next to measured, and the cluster."""
    return "\n\n".join(
        [
            results["machine"],
            _parameters(results),
            *(_error(name, results["here"][name], results["measured"][name]) for name in results["here"]),
            _beside(results["here"], results["measured"]),
            _assumed(results["network"]),
            _over_sizes(results["cluster"]),
        ]
    )


def _parameters(results: dict[str, Any]) -> str:
    network, cpu = results["network"], results["network"]["cpu"]
    lines = [["between two ranks", "L", "o", "g", "1/G", "round trip", "off by up to"]]
    for name, level in (("shm", network["local"]), ("tcp, loopback", network["remote"])):
        times = [duration(level[key]) for key in ("latency", "overhead", "gap")]
        off = results["off"][name.partition(",")[0]]
        lines.append([name, *times, _rate(level["byte_gap"]), duration(level["rendezvous"]), f"{off:.1f} times"])
    said = (
        f"Of a core: a call {duration(cpu['call'])}, combining {duration(cpu['combine'])} and "
        f"{_rate(cpu['combine_byte'])}, an item of a container {duration(cpu['item'])}, "
        f"leaving it to another rank {duration(cpu['switch'])}."
    )
    return f"{_table(lines)}\n\n{said}"


def _error(name: str, predicted: dict[str, float], measured: dict[str, float]) -> str:
    ratios = [predicted[label] / measured[label] for label in predicted]
    return (
        f"**{name}**: predicted ÷ measured is {statistics.median(ratios):.2f} in the median of {len(ratios)} rows, "
        f"from {min(ratios):.2f} to {max(ratios):.2f}."
    )


def _beside(here: dict[str, dict[str, float]], measured: dict[str, dict[str, float]]) -> str:
    lines = [["", *(f"{name}: {what}" for name in here for what in ("predicted", "measured", "ratio"))]]
    for label in next(iter(here.values())):
        pairs = [(here[name][label], measured[name][label]) for name in here]
        lines.append([label, *(cell for a, b in pairs for cell in (duration(a), duration(b), f"{a / b:.2f}"))])
    return _table(lines)


def _assumed(network: dict[str, Any]) -> str:
    latency = network["remote"]["latency"] + WIRE_LATENCY
    return (
        f"Predicted for a cluster that nobody has measured, {RANKS_PER_MACHINE} ranks on each machine. Assumed: a core "
        f"for each rank; that between machines L is {duration(latency)}, {duration(WIRE_LATENCY)} more than on the "
        f"loopback; and that the ranks of a machine share {_rate(PORT)} in each direction. All else is as fitted here."
    )


def _over_sizes(cluster: dict[str, dict[int, float]]) -> str:
    sizes = [size for size in SHOWN if any(size in found for found in cluster.values())]
    lines = [["ranks", *(f"{size:,}" for size in sizes)]]
    lines += [[label, *(duration(found[n]) if n in found else "–" for n in sizes)] for label, found in cluster.items()]
    return _table(lines)


def _rate(seconds_per_byte: float) -> str:
    return f"{1e-9 / seconds_per_byte:.1f} GB/s" if seconds_per_byte else "–"


def _table(lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def put_into_readme(text: str) -> None:
    """Between the two marks."""
    page = README.read_text()
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    README.write_text(f"{page[:begin]}\n\n{text}\n\n{page[end:]}")


def draw(results: Path) -> None:
    """The plot beside the JSON; without Matplotlib, a line that says so."""
    picture = results.with_suffix(".png")
    try:
        python = str(environment("plot", MATPLOTLIB) / "bin/python")
        subprocess.run([python, str(HERE / "predict_plot.py"), str(results), str(picture)], check=True)
    except subprocess.CalledProcessError as problem:
        print(f"no plot: {shown(list(map(str, problem.cmd)))} failed, see above")
    else:
        print(f"wrote {shown([str(picture)])}")


# --- The command ---------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("predict.py", description="Predict the cost of collectives on 2 to 65,536 ranks.")
    add = parser.add_argument
    add("--quick", dest="effort", action="store_const", const=QUICK, default=DEFAULT, help="less of all: half a minute")
    add("--anyway", action="store_true", help=f"start although the machine is not idle (load above {MOST_LOAD})")
    options = parser.parse_args()
    options.in_part = options.effort is QUICK or options.anyway
    return options


def main() -> None:
    options = parse()
    load = os.getloadavg()[0]
    if load > MOST_LOAD and not options.anyway:
        sys.exit(f"the machine is not idle (load {load:.2f} > {MOST_LOAD}); wait, or give --anyway")
    measured = measure(options.effort)
    network, off = fitted(measured)
    results = {
        "machine": machine(load),
        "network": asdict(network),
        "off": off,
        "measured": measured,
        "here": {layout.name: {row.label: predict_here(row, layout, network) for row in rows()} for layout in LAYOUTS},
        "cluster": predict(cluster(network), options.effort.most_ranks),
    }
    text = report(results)
    print(text)
    output = (ENVIRONMENTS if options.in_part else HERE) / "predicted.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {shown([str(output)])}")
    if not options.in_part:
        put_into_readme(text)
    draw(output)


if __name__ == "__main__":
    main()
