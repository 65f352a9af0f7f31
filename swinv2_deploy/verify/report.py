"""The evidence: what was compared, what was found, and whether it passes. Plain data, one JSON file."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from swinv2_deploy.artifacts import write_json
from swinv2_deploy.atomic import replace_file
from swinv2_deploy.errors import ArtifactError, ToleranceExceeded
from swinv2_deploy.verify.bisect import Bisection
from swinv2_deploy.verify.inputs import Skipped
from swinv2_deploy.verify.layers import LayerDrift
from swinv2_deploy.verify.metrics import ClassDrift, OutputDrift
from swinv2_deploy.verify.other_pixels import PreprocessingDrift

SCHEMA = 1

BACK_ENDS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
"""What back ends are called in sentences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One gate.

    Attributes:
        name: What was judged.
        passed: None when it could not be decided, for ``text`` says why.
        value: What was measured; None when it was not finite.
        limit: What passes.
        text: A sentence with both.
    """

    name: str
    passed: bool | None
    value: float | None
    limit: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeDrift:
    """Drift at one size of the sweep, worst over all outputs of a photograph and, up to the native area, of noise.

    Attributes:
        size: (height, width) in px.
        max_abs: Largest absolute difference.
        cosine: Smallest cosine similarity.
    """

    size: tuple[int, int]
    max_abs: float
    cosine: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotDrift:
    """Whether an image's output depends on the batch around it.

    Attributes:
        size: (height, width) in px of the images.
        batch_sizes: Batches tried.
        max_abs: Largest difference between a row and the same image alone.
        relative: The same over the root mean square of the output.
        worst: Where: batch size and row.
    """

    size: tuple[int, int]
    batch_sizes: tuple[int, ...]
    max_abs: float
    relative: float
    worst: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Time of a batch at the native size, in rounds that take turns with FP32 ``model.onnx``.

    Attributes:
        batch: Images run together.
        median_ms: Median, ms.
        baseline_ms: Median of ``model.onnx``, ms.
        speedup: Median over rounds of baseline over candidate; above 1 is faster.
        spread: First and third quartile of the same.
        rounds: Number of rounds.
    """

    batch: int
    median_ms: float
    baseline_ms: float
    speedup: float
    spread: tuple[float, float]
    rounds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateReport:
    """Everything about one ONNX file.

    Attributes:
        name: File name without suffix.
        takes: Its input: ``pixel_values``, or ``images`` as they are decoded.
        back_end: Library that ran it.
        file: Path inside the artifact.
        sha256: Its hash.
        precision: Number format.
        provider: What computed it, as the back end reports.
        integer_products: Whether products of integers are exact on this machine.
        size_bytes: The file with its external data.
        size_ratio: Over that of ``model.onnx``; None without one.
        outputs: Drift of each output.
        classes: What it means for a classifier.
        nonfinite: Images whose output held NaN or infinity.
        sweep: Drift at every size.
        slots: Independence of the batch.
        latencies: One image alone, then a batch; empty when they were not measured.
        checks: Gates.
        owner: Name of the artifact it is of, where that is another one than the report's.
        layers: Drift inside the network; empty where it was not measured, or the back end does not give it.
        first_divergent: First place in it that leaves less signal over noise than a part may have alone; empty where none does.
        bisection: What makes it fail, where that was asked for.
    """

    name: str
    takes: str
    back_end: str
    file: str
    sha256: str
    precision: str
    provider: str
    integer_products: str
    size_bytes: int
    size_ratio: float | None
    outputs: Mapping[str, OutputDrift]
    classes: ClassDrift | None
    nonfinite: tuple[str, ...]
    sweep: tuple[SizeDrift, ...]
    slots: SlotDrift
    latencies: tuple[Latency, ...]
    checks: tuple[Check, ...]
    owner: str = ""
    layers: tuple[LayerDrift, ...] = ()
    first_divergent: str = ""
    bisection: Bisection | None = None

    @property
    def label(self) -> str:
        """Its name, with the back end where that is not ONNX Runtime."""
        name = f"{self.owner}: {self.name}" if self.owner else self.name
        return name if self.back_end == "onnxruntime" else f"{name} in {BACK_ENDS[self.back_end]}"

    @property
    def title(self) -> str:
        """The same with the suffix of the file."""
        return self.label.replace(self.name, f"{self.name}.onnx", 1)

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """A verification.

    Attributes:
        artifact: Path of the artifact.
        artifact_sha256: Hash of its lineage.
        task: What the model returns.
        weights: ``untrained``, ``file``, ``hub`` or ``trained``.
        reference: What judged, and with how many threads.
        data: Image folder.
        images: Images compared.
        classes: Class folders.
        skipped: Images that could not be decoded.
        excluded: Images left out because the artifact has seen them.
        noise: Largest difference that float32 rounding alone makes in the reference, by output, against float64.
        notices: What a reader must know.
        spec: What was asked.
        tolerances: By precision.
        created: UTC time, ISO 8601.
        seconds: Duration.
        tools: Versions.
        candidates: One for each file.
        preprocessing: What other preprocessings do to the reference, where that was asked for.
    """

    artifact: str
    artifact_sha256: str
    task: str
    weights: str
    reference: str
    data: str
    images: int
    classes: int
    skipped: tuple[Skipped, ...]
    excluded: tuple[str, ...]
    noise: Mapping[str, float]
    notices: tuple[str, ...]
    spec: Mapping[str, Any]
    tolerances: Mapping[str, Any]
    created: str
    seconds: float
    tools: Mapping[str, str]
    candidates: tuple[CandidateReport, ...]
    preprocessing: tuple[PreprocessingDrift, ...] = ()

    @property
    def passed(self) -> bool:
        return all(candidate.passed for candidate in self.candidates)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for every gate that failed."""
        checks = [(candidate.label, check) for candidate in self.candidates for check in candidate.checks]
        return tuple(f"{name}: {check.text}" for name, check in checks if check.passed is False)

    @property
    def verdict(self) -> str:
        """One sentence."""
        names = ", ".join(item.title for item in self.candidates if item.passed == self.passed)
        if not self.passed:
            return f"FAIL: {names}: drift beyond tolerance."
        if self.weights == "untrained":
            return f"PASS: {names}: computes the same as the reference; the weights are untrained, so accuracy means nothing."
        open_ones = [
            item.title
            for item in self.candidates
            if any(check.name == "top1 drop" and check.passed is None for check in item.checks)
        ]
        undecided = f"; accuracy of {', '.join(open_ones)} is undecided on so few images" if open_ones else ""
        return f"PASS: {names}: within tolerance of the FP32 reference{undecided}."

    def require_passed(self) -> None:
        """Do nothing when every gate passed.

        Raises:
            ToleranceExceeded: With the failing lines.
        """
        if not self.passed:
            raise ToleranceExceeded("\n  ".join([self.verdict, *self.failures]))

    @property
    def figures_sha256(self) -> str:
        """Hash of all that was found but times and places: equal for two runs, or two engines, that found the same to the bit."""
        content = _plain(self)
        for name in ("artifact", "data", "created", "seconds", "notices", "tools"):
            content.pop(name)
        for name in ("data", "engine", "latency_seconds"):
            content["spec"].pop(name, None)
        for candidate in content["candidates"]:
            for name in ("latencies", "bisection"):
                candidate.pop(name)
            if candidate["owner"]:
                candidate.pop("file")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_junit(self) -> str:
        """JUnit XML for CI systems: a suite a file, a case a gate; what could not be decided is skipped, with the reason."""
        from xml.etree import ElementTree

        root = ElementTree.Element("testsuites", name="swinv2-deploy verify")
        for item in self.candidates:
            failed = sum(check.passed is False for check in item.checks)
            skipped = sum(check.passed is None for check in item.checks)
            suite = ElementTree.SubElement(
                root, "testsuite", name=item.title, tests=str(len(item.checks)), failures=str(failed), skipped=str(skipped)
            )
            for check in item.checks:
                case = ElementTree.SubElement(suite, "testcase", classname=item.title, name=check.name)
                if check.passed is False:
                    ElementTree.SubElement(case, "failure", message=check.text)
                elif check.passed is None:
                    ElementTree.SubElement(case, "skipped", message=check.text)
        return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; infinity and NaN, which JSON lacks, are null."""
        content = _plain(self)
        result = {
            "schema": SCHEMA,
            "passed": self.passed,
            "verdict": self.verdict,
            "failures": list(self.failures),
            "figures_sha256": self.figures_sha256,
        }
        for candidate, plain in zip(self.candidates, content["candidates"], strict=True):
            plain["passed"] = candidate.passed
        return result | dict(content)

    def save(self, artifact: Path, page: str = "") -> Path:
        """Write ``reports/<time>/report.json``, and a page beside it, into an artifact, whole or not at all; return the file.

        Raises:
            ArtifactError: When the artifact cannot be written.
        """
        folder = artifact / "reports"
        stamp = re.sub(r"[^0-9T]", "", self.created[:19])
        try:
            folder.mkdir(exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{stamp}.", suffix=".tmp", dir=folder))
            try:
                temporary.chmod(0o755)
                write_json(temporary / "report.json", self.to_dict())
                if page:
                    (temporary / "report.html").write_text(page, encoding="utf-8")
                return _place(temporary, folder, stamp) / "report.json"
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise ArtifactError(
                f"The report cannot be saved in {folder} ({error.strerror}); use --report FILE to put it elsewhere."
            ) from error

    def write(self, path: Path, page: str = "") -> Path:
        """Write the report to a file, whole or not at all; one that was there is replaced. ``.html`` takes the page.

        Raises:
            ArtifactError: When it cannot be written.
        """
        path = path.absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = page if path.suffix == ".html" and page else json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
            replace_file(path, text.encode(), mode=0o644)
        except OSError as error:
            raise ArtifactError(f"The report cannot be written to {path} ({error.strerror}); choose another place.") from error
        return path


def _place(temporary: Path, folder: Path, stamp: str) -> Path:
    """Rename to the first name that is free; two runs may end in the same second."""
    for number in range(1, 1000):
        target = folder / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            os.rename(temporary, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return target
    raise OSError(errno.EEXIST, f"{folder} has a thousand reports of the same second")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)
