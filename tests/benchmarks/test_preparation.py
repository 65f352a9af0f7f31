"""What was prepared is kept until something it depends on changes, and a failure is told to all who need it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import preparation
from benchmarks.peers.cases import CASES
from benchmarks.peers.peers import PEERS, STEPS, chain
from benchmarks.peers.preparation import Workshop, size_of
from benchmarks.peers.process import last_error
from benchmarks.peers.rounds import WorkerError
from benchmarks.peers.steps import WORK
from benchmarks.peers.workers import ROOT, Worker

CASE = CASES["tiny-256"]


@pytest.fixture
def steps_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps whose process was started; ``timm-onnx`` fails, every other takes two seconds."""
    started: list[str] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        step = command[4]
        started.append(step)
        if step == "timm-onnx":
            return subprocess.CompletedProcess(
                command, 1, "", "Traceback (most recent call last):\n  x\nValueError: no such op\n"
            )
        facts = {"seconds": 2.0, "peak_memory": len(started), "foreign": 0.0}
        return subprocess.CompletedProcess(command, 0, json.dumps(facts), "")

    monkeypatch.setattr(preparation.subprocess, "run", run)
    return started


@pytest.fixture
def workshop(tmp_path: Path) -> Callable[..., Workshop]:
    """Function to a new workshop in one and the same folder."""
    return lambda **options: Workshop(tmp_path, 2, lambda text: None, **options)


def test_a_second_run_starts_nothing(steps_run: list[str], workshop: Callable[..., Workshop]) -> None:
    """Everything is found where the first run left it."""
    workshop().make(CASE, "ours-static-int8", 1)
    assert steps_run == ["weights", "ours-static", "ours-static-int8"]

    again = workshop()
    assert again.make(CASE, "ours-static-int8", 1).error == ""
    assert again.cost(CASE, "ours-static-int8", 1) == (4.0, 3, 0.0)
    assert len(steps_run) == 3


def test_a_fresh_run_starts_everything(steps_run: list[str], workshop: Callable[..., Workshop]) -> None:
    """What a busy machine slowed down can be made again, once in a run."""
    workshop().make(CASE, "ours-static", 1)
    fresh = workshop(fresh=True)
    fresh.make(CASE, "ours-static", 1)
    fresh.make(CASE, "ours-static", 1)

    assert steps_run == ["weights", "ours-static"] * 2


def test_a_new_library_makes_its_files_again(
    steps_run: list[str], workshop: Callable[..., Workshop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions are part of what a preparation depends on."""
    workshop().make(CASE, "ours-static", 1)
    monkeypatch.setattr(preparation, "_version", lambda name: "99")
    workshop().make(CASE, "ours-static", 1)

    assert steps_run == ["weights", "ours-static"] * 2


def test_a_failure_is_told_to_all_who_need_it_and_tried_once(steps_run: list[str], workshop: Callable[..., Workshop]) -> None:
    """Rows of the table show the reason; the next run tries again."""
    made = workshop()
    failed, dependent = made.make(CASE, "timm-onnx", 1), made.make(CASE, "timm-nncf", 1)

    assert failed.error == dependent.error == "timm-onnx: ValueError: no such op (exit code 1)"
    assert steps_run == ["weights", "timm-onnx"]
    workshop().make(CASE, "timm-onnx", 1)
    assert steps_run == ["weights", "timm-onnx", "timm-onnx"]


def test_batch_sizes_share_what_does_not_depend_on_them(steps_run: list[str], workshop: Callable[..., Workshop]) -> None:
    """Our files take any batch; a traced one holds its own."""
    for batch in (1, 8, 1):
        made = workshop()
        made.make(CASE, "ours-dynamic", batch)
        made.make(CASE, "transformers-onnx", batch)

    assert steps_run == ["weights", "ours-dynamic", "transformers-onnx", "transformers-onnx"]


def test_the_registry_is_whole() -> None:
    """Every step is known how to do, every peer has a step, and labels tell peers apart."""
    assert WORK.keys() == STEPS.keys()
    assert {peer.step for peer in PEERS.values()} <= STEPS.keys()
    assert len({peer.label for peer in PEERS.values()}) == len(PEERS)
    assert chain("timm-nncf") == ("timm-onnx", "timm-nncf")


def test_size_counts_weights_that_lie_outside(tmp_path: Path) -> None:
    """``model.onnx.data`` and ``model.bin`` belong to the model; ``model_int8.onnx`` is another one."""
    for name, size in {"model.onnx": 1, "model.onnx.data": 20, "model_int8.onnx": 300, "model.xml": 4, "model.bin": 50}.items():
        (tmp_path / name).write_bytes(b"0" * size)

    assert (size_of(tmp_path / "model.onnx"), size_of(tmp_path / "model.xml")) == (21, 54)


def test_the_reason_is_the_line_that_names_the_error() -> None:
    """Not the warning above it, not the advice below a traceback's frames."""
    text = "a warning\nTraceback (most recent call last):\n  File x, line 3\n    f()\nKeyError: 'y'\n\n"

    assert last_error(text) == "KeyError: 'y'"
    assert last_error("") == "ended without a word"


def test_a_worker_that_cannot_load_says_why(tmp_path: Path) -> None:
    """The error of the child's process becomes the error of the row."""
    request = {
        "peer": "timm-ort",
        "case": CASE.name,
        "batch": 1,
        "folder": str(tmp_path),
        "weights": str(tmp_path),
        "threads": 1,
        "cores": 1,
        "flush": True,
    }
    with pytest.raises(WorkerError, match=r"model\.onnx.*exit code 1"):
        Worker(request)


def test_every_pin_is_exact_and_agrees_with_the_project() -> None:
    """The environment of the benchmark is as reproducible as the project's, and has the same runtimes."""

    def pins(name: str) -> dict[str, str]:
        lines = [line for line in (ROOT / name).read_text("utf-8").splitlines() if line and not line.startswith("#")]
        assert [] == [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
        return {re.sub(r"[-_.]+", "-", key).lower(): version for key, _, version in (line.partition("==") for line in lines)}

    direct, all_pins = pins("benchmarks/peers/requirements.txt"), pins("benchmarks/peers/constraints.txt")
    project = pins("constraints.txt")
    shared = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "openvino", "safetensors", "transformers")

    assert direct.items() <= all_pins.items()
    assert {name: all_pins[name] for name in shared} == {name: project[name] for name in shared}
