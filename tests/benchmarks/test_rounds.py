"""Blocks are interleaved; disturbed ones are repeated up to a limit, and nothing is hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers.rounds import Block, Record, WorkerError, groups, run_rounds


def playing(blocks: Iterable[Block | WorkerError]) -> Callable[[], Block]:
    """A turn that gives the blocks one by one, and raises the errors among them."""
    waiting = iter(blocks)

    def turn() -> Block:
        block = next(waiting)
        if isinstance(block, WorkerError):
            raise block
        return block

    return turn


def run(turns: dict[str, Callable[[], Block]], rounds: int = 1, limit: float = 0.08, attempts: int = 3) -> dict[str, Record]:
    """Rounds without pauses."""
    return run_rounds(turns, rounds=rounds, limit=limit, attempts=attempts, pause=lambda disturbed: None)


def test_a_disturbed_block_is_repeated_until_a_quiet_one() -> None:
    """Only the quiet block's time is kept, and the disturbed ones are counted."""
    found = run({"a": playing([Block(9.0, 0.5), Block(8.0, 0.09), Block(1.0, 0.08)])})

    assert found["a"] == Record(seconds={0: 1.0}, blocks=3, disturbed=2)


def test_a_machine_that_never_rests_is_reported() -> None:
    """After the last attempt the round is given up, and the next one is tried."""
    found = run({"a": playing([Block(9.0, 0.5)] * 3 + [Block(1.0, 0.0)])}, rounds=2)

    assert found["a"] == Record(seconds={1: 1.0}, blocks=4, disturbed=3, given_up=1)


def test_without_a_guard_every_block_counts() -> None:
    """A limit of 1 switches it off."""
    assert run({"a": playing([Block(9.0, 1.7)])}, limit=1.0)["a"] == Record(seconds={0: 9.0}, blocks=1)


def test_a_peer_that_dies_keeps_its_error_and_the_others_go_on() -> None:
    """Its earlier rounds stay."""
    found = run(
        {"a": playing([Block(1.0, 0.0), WorkerError("out of memory")]), "b": playing([Block(2.0, 0.0)] * 3)},
        rounds=3,
    )

    assert found["a"] == Record(seconds={0: 1.0}, blocks=1, error="out of memory")
    assert found["b"].seconds == {0: 2.0, 1: 2.0, 2: 2.0}


def test_peers_take_turns_and_change_their_neighbors() -> None:
    """Each round starts one place later."""
    order: list[str] = []

    def turn(name: str) -> Callable[[], Block]:
        def timed() -> Block:
            order.append(name)
            return Block(1.0, 0.0)

        return timed

    run({name: turn(name) for name in "abc"}, rounds=3)

    assert "".join(order) == "abcbcacab"


def test_the_pause_knows_how_often_the_block_was_disturbed() -> None:
    """So that it can wait longer each time."""
    waits: list[int] = []
    turns = {"a": playing([Block(1.0, 0.5), Block(1.0, 0.5), Block(1.0, 0.0)])}

    run_rounds(turns, rounds=1, limit=0.08, attempts=5, pause=waits.append)

    assert waits == [0, 1, 2]


@given(st.dictionaries(st.text("bcdefgh", min_size=1), st.integers(1, 10), max_size=12), st.integers(1, 30))
def test_groups_fit_into_memory_and_lose_nobody(memory: dict[str, int], budget: int) -> None:
    """Each group holds the baseline once; only a pair may exceed the budget; every other peer is in exactly one group."""
    made = groups({"a": 3, **memory}, "a", budget)

    assert all(group[0] == "a" for group in made)
    assert sorted(name for group in made for name in group[1:]) == sorted(memory)
    assert all(3 + sum(memory[name] for name in group[1:]) <= budget or len(group) <= 2 for group in made)


@pytest.mark.parametrize("memory", [{"a": 1}, {}])
def test_the_baseline_alone_is_a_group(memory: dict[str, int]) -> None:
    """Nothing to compare is no error."""
    assert groups(memory, "a", 10) == [["a"]]
