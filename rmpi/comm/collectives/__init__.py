"""The algorithms, each a schedule of its own: ``name(rank, size, …) -> Schedule``.

`tree.py` and `bracket.py` say who talks to whom; `broadcast.py`, `barrier.py`, `gathering.py` and
`reduction.py` say what. Which algorithm a call uses is decided elsewhere, in `rmpi.comm.choose`.

None of them checks its arguments. Each is right for any size from 2 on, and every one of its exchanges is a
tuple, so that it needs no buffering.
"""
