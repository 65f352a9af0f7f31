"""Round robin of timed blocks. A block that was disturbed is repeated, up to a limit that is reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


class WorkerError(RuntimeError):
    """A worker process that ended or answered with an error."""


@dataclass(frozen=True, slots=True)
class Block:
    """One turn of one peer.

    Attributes:
        seconds: Median time of one run in the block.
        foreign: Share of the machine's CPU time that others took meanwhile.
    """

    seconds: float
    foreign: float


@dataclass(kw_only=True, slots=True)
class Record:
    """What became of one peer's turns.

    Attributes:
        seconds: Time of one run by round, quiet blocks only.
        blocks: All blocks that were timed.
        disturbed: Those that others disturbed.
        given_up: Rounds without a quiet block.
        error: Why it stopped, empty when it did not.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    blocks: int = 0
    disturbed: int = 0
    given_up: int = 0
    error: str = ""


def run_rounds(
    turns: Mapping[str, Callable[[], Block]],
    *,
    rounds: int,
    limit: float,
    attempts: int,
    pause: Callable[[int], object],
    progress: Callable[[int], object] = lambda number: None,
) -> dict[str, Record]:
    """Give each peer one quiet block a round.

    Args:
        turns: Peer to function that times one block.
        rounds: Rounds.
        limit: Largest foreign share of a block that counts; 1 and above lets every block count.
        attempts: Blocks that are tried for one peer in one round.
        pause: Called before each block with the number of disturbed blocks right before it, to let the machine calm down.
        progress: Called after each round with its number, from 1.
    """
    made = {name: Record() for name in turns}
    names = list(turns)
    for number in range(rounds):
        start = number % len(names)  # nobody always runs behind the same neighbor
        for name in names[start:] + names[:start]:
            if not made[name].error:
                _turn(turns[name], made[name], number, limit, attempts, pause)
        progress(number + 1)
    return made


def _turn(
    turn: Callable[[], Block], record: Record, number: int, limit: float, attempts: int, pause: Callable[[int], object]
) -> None:
    for attempt in range(attempts):
        pause(attempt)
        try:
            block = turn()
        except WorkerError as error:
            record.error = str(error)
            return
        record.blocks += 1
        if limit >= 1 or block.foreign <= limit:
            record.seconds[number] = block.seconds
            return
        record.disturbed += 1
    record.given_up += 1


def groups(memory: Mapping[str, int], first: str, budget: int) -> list[list[str]]:
    """Peers whose workers fit into memory together, each group led by the one that all are compared with.

    Args:
        memory: Peer to bytes.
        first: Peer that every group holds.
        budget: Bytes. A peer that does not fit beside ``first`` gets a group of its own all the same.
    """
    made: list[list[str]] = []
    used: list[int] = []
    for name in memory:
        if name == first:
            continue
        place = next((i for i, total in enumerate(used) if total + memory[name] <= budget), None)
        if place is None:
            made.append([first])
            used.append(memory.get(first, 0))
            place = len(made) - 1
        made[place].append(name)
        used[place] += memory[name]
    return made or [[first]]
