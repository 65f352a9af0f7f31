"""Killed runs end as uninterrupted ones, and two processes learn what one does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import bench_processes, bench_resume
from swinv2_deploy.training import checkpoint


@pytest.mark.slow
def test_killed_runs_end_bit_identically() -> None:
    """SIGKILL after the first and the last step and in the middle of two saves, of a quantized model that goes back once."""
    rows = bench_resume.measure(kills=4, seed=0)

    assert [row["ended"] for row in rows] == ["killed at 1", "killed at save", "killed at 18", "killed at save"]
    assert [row["resumed_from"] for row in rows] == [0, 2, 16, 10]
    assert [row["different"] for row in rows] == [[]] * 4
    assert min(row["compared"] for row in rows) > 400


@pytest.mark.slow
def test_a_different_bit_would_be_seen(tmp_path: Path) -> None:
    """The comparison above can fail: one weight of the result, the last bit."""
    assert bench_resume.run(tmp_path, lambda _: False) == "end"
    whole = bench_resume.content(tmp_path)
    assert {"checkpoint: model.amax", "checkpoint: average.gain", "checkpoint: optimizer.exp_avg.gain"} <= whole.keys()
    result = tmp_path / "result.safetensors"
    tensors = load_file(result)
    tensors["gain"] = torch.nextafter(tensors["gain"], torch.tensor(9.0))
    save_file(tensors, result)
    (tmp_path / checkpoint.UNFINISHED).mkdir()

    assert bench_resume.differences(tmp_path, whole) == ["result: gain", checkpoint.UNFINISHED]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """The same losses for 20 steps with half of the batch each, and one process that writes and tells."""
    [one] = bench_processes.run(tmp_path / "one", 1)
    two = bench_processes.run(tmp_path / "two", 2)

    assert [one["processes"], two[0]["processes"]] == [1, 2]
    assert two[1]["told"] == 0
    assert len(one["losses"]) == len(two[0]["losses"]) == 24
    apart = [abs(a - b) for a, b in zip(one["losses"], two[0]["losses"], strict=True)]
    assert max(apart[:20]) <= bench_processes.TOLERANCE
    assert max(one["losses"]) - min(one["losses"]) > 0.01
    assert two[0]["weights"] == two[1]["weights"]
    assert two[0]["weights"] == pytest.approx(one["weights"], abs=1e-5)


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"SpecError: accumulate is 3"):
        bench_processes.run(tmp_path, 2, bench_processes.Case(accumulate=3))


@pytest.mark.slow
def test_two_processes_with_half_of_the_model_each_learn_what_one_does(tmp_path: Path) -> None:
    """Sharded: the same losses and weights, half of the parameters in each process, and what is whole at the end is the same."""
    [one] = bench_processes.run(tmp_path / "one", 1)
    two = bench_processes.run(tmp_path / "two", 2, bench_processes.Case(sharded=True, accumulate=2))

    assert [one["sharded"], two[0]["sharded"], two[0]["processes"]] == [False, True, 2]
    assert two[0]["losses"] == pytest.approx(one["losses"], abs=bench_processes.TOLERANCE)
    assert two[0]["weights"] == two[1]["weights"] == pytest.approx(one["weights"], abs=1e-5)
    assert [process["held"] < 0.6 * one["held"] for process in two] == [True, True]


@pytest.mark.slow
def test_sharded_runs_go_on_and_go_back(tmp_path: Path) -> None:
    """A sharded run that is stopped between two checkpoints ends as the uninterrupted one, to the bit.

    Its checkpoint is whole, so that one process ends it as well. Both go back once, to a state that each keeps its part of.
    """
    fails = bench_processes.Case(sharded=True, fails_at=9)
    whole = bench_processes.run(tmp_path / "whole", 2, fails)
    assert len(whole[0]["losses"]) > 24

    stopped = bench_processes.run(tmp_path / "run", 2, replace(fails, stops_after=3))
    assert not stopped[0]["weights"]
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    resumed = bench_processes.run(tmp_path / "run", 2, fails)
    assert resumed[0]["step"] == 3
    assert resumed[0]["weights"] == whole[0]["weights"]
    kept = [load_file(tmp_path / name / checkpoint.FILE_NAME) for name in ("whole", "run")]
    assert bench_resume.different(*kept) == []

    [alone] = bench_processes.run(tmp_path / "alone", 1, replace(fails, sharded=False))
    assert alone["step"] == 3
    assert alone["losses"] == pytest.approx(whole[0]["losses"][3:], abs=bench_processes.TOLERANCE)
    assert alone["weights"] == pytest.approx(whole[0]["weights"], abs=1e-5)
