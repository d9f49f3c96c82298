"""Who shares a machine, and what may be combined there first."""

from __future__ import annotations

import pytest
from sequential import machine_layouts, ranks_of, tree

from rmpi.comm.collectives.tree import seat
from rmpi.comm.topology import Machines


def subtrees(node):
    yield ranks_of(node)
    if isinstance(node, tuple):
        for half in node:
            yield from subtrees(half)


def test_ranks_are_grouped_by_machine_in_rank_order():
    machines = Machines.of(("b", "a", "b", "c", "a", "b"))
    assert machines.groups == ((0, 2, 5), (1, 4), (3,))
    assert machines.leaders == (0, 1, 3)
    assert machines.order == (0, 2, 5, 1, 4, 3)
    assert machines.mine(4) == (1, 4)
    assert machines.leader(5) == 0
    assert machines.several
    assert machines.nested


def test_equal_ids_give_the_same_object():
    assert Machines.of((1, 1, 2)) is Machines.of((1, 1, 2))


@pytest.mark.parametrize(
    ("ids", "several", "nested"), [((7,), False, False), ((7, 7), False, False), ((7, 8), True, False)]
)
def test_two_levels_need_several_machines_and_several_ranks_on_one(ids, several, nested):
    machines = Machines.of(ids)
    assert (machines.several, machines.nested) == (several, nested)


@pytest.mark.parametrize(
    ("ids", "whole", "height"),
    [
        ("aabb", True, 1),
        ("aaaabbbb", True, 2),
        ("aaaabbcc", True, None),  # subtrees, but of two heights
        ("abab", False, None),
        ("abb", False, None),  # 0 and 1 are combined first
        ("aab", True, 0),  # so this is one block each
        ("aaabbb", False, None),
        ("aaaabb", True, 1),
        ("aaaaaab", False, None),
        ("abbccd", False, None),
        ("abcdd", True, None),  # 0 and 1 are half a block each
    ],
)
def test_machines_may_be_subtrees_of_the_bracketing(ids, whole, height):
    machines = Machines.of(tuple(ids))
    assert (machines.whole, machines.height) == (whole, height)


@pytest.mark.parametrize("size", range(1, 18))
def test_whole_means_that_each_machine_is_a_subtree(size):
    known = list(subtrees(tree(size)))
    for machines in machine_layouts(size):
        if machines is not None:
            assert machines.whole == all(list(group) in known for group in machines.groups)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_trees_have_contiguous_subtrees_and_enter_each_machine_once(size):
    for machines in machine_layouts(size):
        for root in range(size):
            seats = [seat(rank, size, root, machines) for rank in range(size)]
            assert seats[root].count == size
            for rank, here in enumerate(seats):
                assert here.order[here.virtual] == rank
                assert sorted(here.order) == list(range(size))
                start = 1
                for child in here.children:
                    assert (child.start, child.rank) == (start, here.order[here.virtual + start])
                    assert (seats[child.rank].parent, seats[child.rank].count) == (rank, child.count)
                    start += child.count
                assert start == here.count
            if machines is not None and machines.nested:
                edges = [(rank, here.parent) for rank, here in enumerate(seats) if here.parent is not None]
                between = [edge for edge in edges if machines.mine(edge[0]) != machines.mine(edge[1])]
                assert len(between) == len(machines.groups) - 1
