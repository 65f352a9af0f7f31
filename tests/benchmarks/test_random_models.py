"""A few of the random models that benchmarks/bench_random_models.py makes by the hundred, and that it sees what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import bench_random_models
from benchmarks.bench_random_models import check, random_config
from reference_model.config import TASKS


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", [0, 3, 5, 7, 10])
def test_is_right(seed: int, tmp_path: Path) -> None:
    """An encoder, a backbone, a classifier, a masked image model and an image reconstruction."""
    assert check(seed, tmp_path)[1] == []


def test_those_are_of_every_task() -> None:
    import random

    assert {random_config(random.Random(seed)).task for seed in (0, 3, 5, 7, 10)} == set(TASKS)


def test_a_wrong_runtime_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that adds a hundredth to everything, in OpenVINO alone."""
    right = bench_random_models.load_runner

    def wrong(*arguments: Any, **options: Any) -> Any:
        runner = right(*arguments, **options)
        if options.get("back_end") == "openvino":
            run = runner.run
            monkeypatch.setattr(
                runner, "run", lambda *inputs: {name: np.float32(1.01) * x + 1 for name, x in run(*inputs).items()}
            )
        return runner

    monkeypatch.setattr(bench_random_models, "load_runner", wrong)
    found = check(5, tmp_path)[1]

    assert any(line.startswith("FP32 in openvino, ") for line in found)
    assert any(line.startswith("FP32 in openvino pinned, ") for line in found)
    assert any(line.startswith("model_int8 in OpenVINO is ") for line in found)
    assert not any("onnxruntime" in line or "uint8" in line for line in found)
