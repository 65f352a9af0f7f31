"""Run the preparations, each in its own process, and keep what they made until something they depend on changes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.peers.cases import Case
from benchmarks.peers.peers import STEPS, chain
from benchmarks.peers.process import last_error
from benchmarks.peers.workers import ROOT, environment

LIBRARIES = ("torch", "timm", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino", "nncf", "numpy")
PACKAGES = ("reference_model", "calibration", "swinv2_deploy")
MARKER = "step.json"
"""Written last: a folder without it is an unfinished one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """One finished or failed preparation.

    Attributes:
        folder: Its files.
        seconds: Time of the work.
        peak_memory: Most memory of its process, in bytes.
        foreign: Share of the machine's CPU time that others took meanwhile.
        error: Why there is nothing, empty when there is.
    """

    folder: Path
    seconds: float = 0.0
    peak_memory: int = 0
    foreign: float = 0.0
    error: str = ""


@dataclass(slots=True)
class Workshop:
    """Where preparations are made and kept.

    Attributes:
        root: Folder of all of them.
        threads: Threads they may use.
        say: Called with a sentence before something that takes long.
        fresh: Whether what earlier runs made is made again.
    """

    root: Path
    threads: int
    say: Callable[[str], object]
    fresh: bool = False
    _made: dict[Path, Prepared] = field(default_factory=dict)
    _sources: dict[str, str] = field(default_factory=dict)

    def folder(self, case: Case, step: str, batch: int) -> Path:
        """Where a step's files are."""
        return self.root / case.name / (f"{step}-b{batch}" if STEPS[step].per_batch else step)

    def make(self, case: Case, step: str, batch: int) -> Prepared:
        """A step and everything before it. Failures are tried again in the next run, not in this one."""
        folder = self.folder(case, step, batch)
        if folder in self._made:
            return self._made[folder]
        source = folder
        if STEPS[step].needs:
            before = self.make(case, STEPS[step].needs, batch)
            source = before.folder
            if before.error:
                self._made[folder] = Prepared(folder=folder, error=before.error)
                return self._made[folder]
        key = self._key(case, step, batch)
        self._made[folder] = (None if self.fresh else _kept(folder, key)) or self._run(case, step, batch, folder, source, key)
        return self._made[folder]

    def cost(self, case: Case, step: str, batch: int) -> tuple[float, int, float]:
        """Seconds of a step and all before it, and the largest memory and disturbance of any of them; the weights aside."""
        made = [self.make(case, name, batch) for name in chain(step)]
        memory, foreign = max((one.peak_memory for one in made), default=0), max((one.foreign for one in made), default=0.0)
        return sum(one.seconds for one in made), memory, foreign

    def _run(self, case: Case, step: str, batch: int, folder: Path, source: Path, key: str) -> Prepared:
        self.say(f"{case.name}: preparing {folder.name}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers.steps", case.name, step, str(batch), str(folder), str(source)],
            cwd=ROOT,
            env=environment(self.threads, folder),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if result.returncode:
            (folder / "error.txt").write_text(result.stderr, encoding="utf-8")
            return Prepared(folder=folder, error=f"{step}: {last_error(result.stderr)} (exit code {result.returncode})")
        facts = json.loads(result.stdout)
        (folder / MARKER).write_text(json.dumps({"key": key} | facts) + "\n", encoding="utf-8")
        return Prepared(folder=folder, **facts)

    def _key(self, case: Case, step: str, batch: int) -> str:
        """Everything a step's files depend on, as a hash."""
        names = ("benchmarks/peers/cases.py", "benchmarks/peers/models.py", "benchmarks/peers/steps.py")
        inputs = [
            case.variant,
            step,
            str(batch) if STEPS[step].per_batch else "any",
            *(f"{name} {_version(name)}" for name in LIBRARIES),
        ]
        inputs += [self._source(name) for name in (*names, *(PACKAGES if STEPS[step].ours else ()))]
        before = STEPS[step].needs
        return hashlib.sha256("\n".join([*inputs, self._key(case, before, batch) if before else ""]).encode()).hexdigest()

    def _source(self, name: str) -> str:
        if name not in self._sources:
            path = ROOT / name
            files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
            self._sources[name] = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
        return self._sources[name]


def size_of(file: Path) -> int:
    """Bytes of a model file and of the weights beside it: ``.data`` of ONNX, ``.bin`` of OpenVINO."""
    beside = (file.with_name(f"{file.name}.data"), *([file.with_suffix(".bin")] if file.suffix == ".xml" else ()))
    return sum(path.stat().st_size for path in (file, *beside) if path.is_file())


def nodes_of(file: Path) -> int | None:
    """Nodes of an ONNX graph, or operations of an OpenVINO model, constants aside; None where there is no graph."""
    if file.suffix == ".onnx":
        import onnx

        model = onnx.load(file, load_external_data=False)
        return len(model.graph.node)
    if file.suffix == ".xml":
        import openvino

        model = openvino.Core().read_model(file)
        return sum(operation.get_type_name() not in ("Constant", "Parameter", "Result") for operation in model.get_ops())
    return None


def _kept(folder: Path, key: str) -> Prepared | None:
    marker = folder / MARKER
    if not marker.is_file():
        return None
    facts = json.loads(marker.read_text(encoding="utf-8"))
    return Prepared(folder=folder, **facts) if facts.pop("key") == key else None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
