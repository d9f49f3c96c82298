"""k-means: what it computes is scikit-learn's; what it reads, writes and refuses is the specification."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import KMeans

from rmpi.testing.ranks import run_ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import kmeans

RANKS = [1, 2, 3, 4]


def blobs(n=1001, d=3, k=7):
    """Points around ``k`` centres that overlap, no two of them alike, and where to begin."""
    random = np.random.default_rng(4)
    points = random.normal(size=(n, d)) + random.integers(0, 6, (k, d))[random.integers(0, k, n)] + 100
    return points, points[:k].copy()


def share(comm, points):
    start, count = comm.partition(len(points))
    return points[start : start + count]


def cluster(size, points, centroids, tol=0.0, max_iter=300):
    """`kmeans.cluster` on ``size`` ranks: the first rank's result with everybody's labels."""

    def main(comm):
        return kmeans.cluster(comm, share(comm, points), centroids, tol=tol, max_iter=max_iter)

    results = run_ranks(size, main)
    for result in results:
        assert result.centroids.tobytes() == results[0].centroids.tobytes()
        assert (result.counts == results[0].counts).all()
        assert result[3:] == results[0][3:]
    return results[0]._replace(labels=np.concatenate([result.labels for result in results]))


# --- The algorithm -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("max_iter", [1, 4, 300])
def test_it_is_what_scikit_learn_computes(size, max_iter):
    points, centres = blobs()
    expected = KMeans(7, init=centres, n_init=1, algorithm="lloyd", tol=0, max_iter=max_iter).fit(points)
    found = cluster(size, points, centres, max_iter=max_iter)
    assert (found.labels == expected.labels_).all()
    assert found.inertia == pytest.approx(expected.inertia_, rel=1e-9, abs=0)
    assert found.centroids == pytest.approx(expected.cluster_centers_, rel=1e-12)
    assert (found.counts == np.bincount(expected.labels_)).all()


@pytest.mark.parametrize("d", [1, 2, 20])
def test_it_is_so_in_blocks_and_in_any_dimension(d, monkeypatch):
    monkeypatch.setattr(kmeans, "AT_ONCE", 100)  # 14 points at a time
    points, centres = blobs(d=d)
    expected = KMeans(7, init=centres, n_init=1, algorithm="lloyd", tol=0, max_iter=300).fit(points)
    found = cluster(2, points, centres)
    assert (found.labels == expected.labels_).all()
    assert found.inertia == pytest.approx(expected.inertia_, rel=1e-9, abs=0)


@pytest.mark.parametrize("size", RANKS)
def test_the_bits_are_the_same_each_time(size):
    points, centres = blobs()
    first, second = (cluster(size, points, centres) for _ in range(2))
    assert kmeans.checksum(first.centroids) == kmeans.checksum(second.centroids)
    assert first.inertia == second.inertia


def test_a_checksum_sees_the_last_bit():
    centroids = np.ones((2, 3))
    other = centroids.copy()
    other[1, 2] = np.nextafter(1, 2)
    assert kmeans.checksum(centroids) != kmeans.checksum(other)


def test_it_stops_after_the_first_move_that_is_not_above_tol():
    points, centres = blobs()
    moves = []

    def watch(iteration, moved):
        moves.append((iteration, moved))

    def main(comm):
        return kmeans.cluster(comm, points, centres, tol=0.1, max_iter=300, watch=watch)

    found = run_ranks(1, main)[0]
    assert [number for number, _ in moves] == list(range(1, found.iterations + 1))
    assert all(moved > 0.1 for _, moved in moves[:-1])
    assert 0 < moves[-1][1] == found.moved <= 0.1


def test_labels_and_inertia_belong_to_the_centroids():
    points, centres = blobs()
    found = cluster(2, points, centres, max_iter=3)
    distances = ((points[:, None] - found.centroids) ** 2).sum(axis=2)
    assert (found.labels == distances.argmin(axis=1)).all()
    assert found.inertia == pytest.approx(distances.min(axis=1).sum(), rel=1e-12)


def test_a_cluster_without_points_keeps_its_centroid():
    points = np.array([[0.0], [1.0], [10.0], [11.0]])
    found = cluster(2, points, np.array([[0.0], [1e6], [11.0]]))
    assert found.centroids.tolist() == [[0.5], [1e6], [10.5]]
    assert found.counts.tolist() == [2, 0, 2]


def test_of_two_centroids_equally_near_the_first_gets_the_point():
    labels, _ = kmeans.assign(np.array([[1.0]]), np.array([[2.0], [0.0], [2.0]]))
    assert labels.tolist() == [0]


def test_a_rank_may_have_no_points():
    found = cluster(4, np.array([[0.0, 0], [2, 0], [9, 9]]), np.array([[0.0, 0], [9, 9]]))
    assert found.centroids.tolist() == [[1, 0], [9, 9]]
    assert found.labels.tolist() == [0, 0, 1]


def test_the_arguments_are_not_modified():
    points, centres = blobs(n=50)
    points.flags.writeable = centres.flags.writeable = False
    cluster(2, points, centres)


# --- Where it begins -----------------------------------------------------------------------------


def test_it_begins_with_different_points():
    points = np.repeat(np.arange(5, dtype=np.uint8)[:, None], 100, axis=0)
    assert sorted(kmeans.pick(points, 5, seed=1).ravel()) == [0, 1, 2, 3, 4]


def test_the_seed_decides_with_which():
    points, _ = blobs()
    assert (kmeans.pick(points, 7, seed=1) == kmeans.pick(points, 7, seed=1)).all()
    assert (kmeans.pick(points, 7, seed=1) != kmeans.pick(points, 7, seed=2)).any()


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RMPI_TERMINAL", raising=False)
    return tmp_path


def run(size, *argv):
    """The exit statuses by rank."""
    return run_ranks(size, kmeans.main, argv)


def stripes():
    """12 × 8 pixels in four colours."""
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [90, 90, 90]], np.uint8)
    return colours[np.arange(12 * 8).reshape(8, 12) % 4]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("size", RANKS)
def test_a_picture_in_k_colours_stands_beside_the_original(size, capsys):
    Image.fromarray(stripes()).save("flag.png")
    assert run(size, "--k", "4", "flag.png") == [0] * size
    with Image.open("flag-4-colours.png") as picture:
        assert (np.asarray(picture) == np.hstack([stripes(), stripes()])).all()
    said, complaint = capsys.readouterr()
    lines = said.splitlines()
    assert lines[0] == f"flag.png: 96 pixels into 4 clusters, ranks: {size}"
    assert lines[1].startswith("iterations: 1 in ")
    assert lines[2].startswith("inertia 0.000000000e+00, centroids ")
    assert lines[3:] == ["wrote flag-4-colours.png"]
    assert complaint == ""


@pytest.mark.usefixtures("here")
def test_the_photograph_by_default(capsys):
    assert run(2, "--max-iter", "2", "--output", "small.png") == [0, 0]
    with Image.open("small.png") as picture:
        assert picture.size == (2 * 640, 427)
        assert len(picture.crop((640, 0, 1280, 427)).getcolors()) == 16
    assert capsys.readouterr().out.startswith("china.jpg: 273280 pixels into 16 clusters, ranks: 2\n")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["points.npy", "points.csv"])
def test_points_get_labels_and_centroids(name, capsys):
    points, _ = blobs()
    np.save("points.npy", points)
    np.savetxt("points.csv", points, delimiter=",", header="x,y,z")
    assert run(3, "--k", "5", "--seed", "7", name) == [0, 0, 0]
    expected = cluster(3, points, kmeans.pick(points, 5, seed=7))
    with np.load("points-5-clusters.npz") as written:
        assert (written["labels"] == expected.labels).all()
        assert (written["centroids"] == expected.centroids).all()
    assert capsys.readouterr().out.endswith("wrote points-5-clusters.npz\n")


@pytest.mark.usefixtures("here")
def test_a_row_of_numbers_is_points_on_a_line():
    np.save("line.npy", [0, 1, 10, 11])
    assert run(2, "--k", "2", "line.npy", "--output", "result") == [0, 0]
    with np.load("result") as written:
        assert sorted(written["centroids"].ravel()) == [0.5, 10.5]


@pytest.mark.usefixtures("here")
def test_a_cluster_without_points_is_reported(capsys, monkeypatch):
    np.save("line.npy", [0.0, 1, 10, 11])
    monkeypatch.setattr(kmeans, "pick", lambda *_: np.array([[0.0], [1e6], [1e7]]))
    assert run(1, "--k", "3", "line.npy") == [0]
    assert "\nwithout points, and left where they were: centroids 1, 2\n" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_progress_is_shown_on_the_launchers_terminal(capsys, monkeypatch):
    monkeypatch.setenv("RMPI_TERMINAL", "80x24")
    np.save("line.npy", [0.0, 1, 10, 11])
    run(2, "--k", "2", "line.npy")
    steps = capsys.readouterr().out.split("\r")
    assert [step.split(",")[0] for step in steps[:-1]] == [f"iteration {i}" for i in range(1, len(steps))]


# --- What it refuses -----------------------------------------------------------------------------

REFUSED = [
    (["--k", "0", "ok.npy"], "--k must be 1 or more, not 0"),
    (["--k", "two", "ok.npy"], "argument --k: invalid int value: 'two'"),
    (["--tol", "-1", "ok.npy"], "--tol must be 0 or more, not -1.0"),
    (["--tol", "nan", "ok.npy"], "--tol must be 0 or more, not nan"),
    (["--max-iter", "0", "ok.npy"], "--max-iter must be 1 or more, not 0"),
    (["--seed", "-1", "ok.npy"], "--seed must be 0 or more, not -1"),
    (["--clusters", "3", "ok.npy"], "unrecognized arguments: --clusters"),
    (["--k", "4", "ok.npy"], "--k 4 needs 4 different points, but there are 3: use a smaller k"),
    (["--output", "nowhere/x.npz", "ok.npy"], "--output: there is no directory nowhere"),
    (["--k", "1", "--output", ".", "ok.npy"], "cannot write .: "),
    (
        ["--k", "1", "--output", "x.unknown", "ok.png"],
        "cannot write x.unknown: unknown file extension: .unknown",
    ),
    (["missing.jpg"], "cannot read missing.jpg: No such file or directory"),
    (["missing.csv"], "cannot read missing.csv: missing.csv not found"),
    (["."], "cannot read .: Is a directory"),
    (["noise.jpg"], "cannot read noise.jpg: cannot identify image file"),
    (["noise.npy"], "cannot read noise.npy: the magic string is not correct"),
    (["noise.csv"], "cannot read noise.csv: 'utf-8' codec can't decode"),
    (["header.csv"], "cannot read header.csv: could not convert string 'x' to float64 at row 0, column 1"),
    (["empty.csv"], "empty.csv should hold numbers, a point per row, not float64 of shape (0, 1)"),
    (["cube.npy"], "cube.npy should hold numbers, a point per row, not float64 of shape (2, 2, 2)"),
    (["words.npy"], "words.npy should hold numbers, a point per row, not <U1 of shape (2, 1)"),
    (
        ["nan.csv"],
        "nan.csv has a NaN or an infinity in 2 points, the first of them in row 1 (counted from 0)",
    ),
]


@pytest.fixture
def files(here):
    """One file of each kind that is wrong, and two that are right."""
    np.save("ok.npy", [[0.0], [1], [2]])
    Image.fromarray(stripes()).save("ok.png")
    for name in "noise.jpg", "noise.npy", "noise.csv":
        Path(name).write_bytes(b"\xff\xfe neither a picture nor numbers")
    Path("header.csv").write_text("x,y\n1,2\n")
    Path("empty.csv").write_text("")
    Path("nan.csv").write_text("1,2\n3,nan\n4,5\ninf,6\n")
    np.save("cube.npy", np.zeros((2, 2, 2)))
    np.save("words.npy", ["a", "b"])
    return here


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("argv", "message"), REFUSED, ids=[" ".join(argv) for argv, _ in REFUSED])
def test_rank_0_says_what_is_wrong_and_the_others_end_quietly(argv, message, size, files, capsys):
    before = sorted(files.iterdir())
    assert run(size, *argv) == [2] + [0] * (size - 1)
    complaint = capsys.readouterr().err
    assert complaint.count("kmeans.py: ") == 1
    assert message in complaint
    assert sorted(files.iterdir()) == before


@pytest.mark.usefixtures("here")
def test_help_ends_all_ranks(capsys):
    assert run(3, "--help") == [0, 0, 0]
    assert capsys.readouterr().out.count("usage: kmeans.py") == 1


@pytest.mark.usefixtures("here")
def test_without_the_extra_it_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr(kmeans, "find_spec", lambda _: None)
    assert run(2) == [2, 0]
    assert 'install it with: pip install "rmpi[examples]"' in capsys.readouterr().err


@pytest.mark.usefixtures("files")
def test_without_pillow_too(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert run(2, "ok.png") == [2, 0]
    assert 'install it with: pip install "rmpi[examples]"' in capsys.readouterr().err
