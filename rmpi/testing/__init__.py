"""The test kit: ranks as threads, a simulator for collectives, a conformance suite for links."""

from rmpi.testing.ranks import run_ranks

__all__ = ["run_ranks"]
