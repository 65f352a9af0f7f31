"""Killed runs end as uninterrupted ones, and two processes learn what one does."""

from __future__ import annotations

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
