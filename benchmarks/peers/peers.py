"""Who is measured, and what each needs to be made first. No torch import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Runtime = Literal["torch", "compile", "onnxruntime", "openvino"]

BASELINE = "timm"
OURS = "ours"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One preparation, done once and kept.

    Attributes:
        needs: Step whose files it reads; empty for the first.
        per_batch: Whether its files hold one batch size only.
        ours: Whether this project's packages make it, so that it is stale when their code changes.
        file: Model file it leaves, relative to its folder; empty when there is none to run.
    """

    needs: str = ""
    per_batch: bool = False
    ours: bool = False
    file: str = ""


STEPS: dict[str, Step] = {
    "weights": Step(file="model.safetensors"),
    "timm-compile": Step(needs="weights", per_batch=True),
    "timm-onnx": Step(needs="weights", per_batch=True, file="model.onnx"),
    "transformers-onnx": Step(needs="weights", per_batch=True, file="model.onnx"),
    "timm-ort-int8": Step(needs="timm-onnx", per_batch=True, file="model.onnx"),
    "timm-nncf": Step(needs="timm-onnx", per_batch=True, file="model.xml"),
    "ours-static": Step(needs="weights", ours=True, file="artifact/onnx/model.onnx"),
    "ours-dynamic": Step(needs="weights", ours=True, file="artifact/onnx/model.onnx"),
    "ours-static-int8": Step(needs="ours-static", ours=True, file="artifact/onnx/model_int8.onnx"),
    "ours-dynamic-int8": Step(needs="ours-dynamic", ours=True, file="artifact/onnx/model_int8.onnx"),
    "ours-pinned": Step(needs="ours-dynamic", per_batch=True, ours=True, file="pinned/model.onnx"),
    "ours-pinned-int8": Step(needs="ours-dynamic-int8", per_batch=True, ours=True, file="pinned/model_int8.onnx"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One way to run the model.

    Attributes:
        label: How tables and plots name it.
        runtime: What computes.
        step: Preparation whose file it runs.
        precision: What the matrix products of linear layers compute in; ``auto`` is what OpenVINO takes by itself.
        file: File of the step to run, where it is not the one the step names.
    """

    label: str
    runtime: Runtime
    step: str
    precision: Literal["fp32", "int8", "auto"] = "fp32"
    file: str = ""

    @property
    def model_file(self) -> str:
        """File it runs, relative to the step's folder."""
        return self.file or STEPS[self.step].file


_UINT8 = "artifact/onnx/model_uint8.onnx"

PEERS: dict[str, Peer] = {
    "timm": Peer(label="timm, eager", runtime="torch", step="weights"),
    "transformers": Peer(label="transformers, eager", runtime="torch", step="weights"),
    "timm-compile": Peer(label="timm, torch.compile", runtime="compile", step="timm-compile"),
    "timm-ort": Peer(label="timm → ONNX Runtime", runtime="onnxruntime", step="timm-onnx"),
    "transformers-ort": Peer(label="transformers → ONNX Runtime", runtime="onnxruntime", step="transformers-onnx"),
    "timm-openvino": Peer(label="timm → OpenVINO, FP32", runtime="openvino", step="timm-onnx"),
    "timm-openvino-auto": Peer(label="timm → OpenVINO, default", runtime="openvino", step="timm-onnx", precision="auto"),
    "timm-ort-int8": Peer(label="timm → ONNX Runtime INT8", runtime="onnxruntime", step="timm-ort-int8", precision="int8"),
    "timm-nncf": Peer(label="timm → NNCF INT8, OpenVINO", runtime="openvino", step="timm-nncf", precision="int8"),
    "ours-static-ort": Peer(label="ours static, ONNX Runtime", runtime="onnxruntime", step="ours-static"),
    "ours-dynamic-ort": Peer(label="ours dynamic, ONNX Runtime", runtime="onnxruntime", step="ours-dynamic"),
    "ours-pinned-ort": Peer(label="ours pinned, ONNX Runtime", runtime="onnxruntime", step="ours-pinned"),
    "ours-static-openvino": Peer(label="ours static, OpenVINO FP32", runtime="openvino", step="ours-static"),
    "ours-dynamic-openvino": Peer(label="ours dynamic, OpenVINO FP32", runtime="openvino", step="ours-dynamic"),
    "ours-pinned-openvino": Peer(label="ours pinned, OpenVINO FP32", runtime="openvino", step="ours-pinned"),
    "ours-static-int8-ort": Peer(
        label="ours static int8, ONNX Runtime", runtime="onnxruntime", step="ours-static-int8", precision="int8"
    ),
    "ours-dynamic-int8-ort": Peer(
        label="ours dynamic int8, ONNX Runtime", runtime="onnxruntime", step="ours-dynamic-int8", precision="int8"
    ),
    "ours-pinned-int8-ort": Peer(
        label="ours pinned int8, ONNX Runtime", runtime="onnxruntime", step="ours-pinned-int8", precision="int8"
    ),
    "ours-static-uint8-ort": Peer(
        label="ours static uint8, ONNX Runtime", runtime="onnxruntime", step="ours-static-int8", precision="int8", file=_UINT8
    ),
    "ours-dynamic-uint8-ort": Peer(
        label="ours dynamic uint8, ONNX Runtime", runtime="onnxruntime", step="ours-dynamic-int8", precision="int8", file=_UINT8
    ),
    "ours-pinned-uint8-ort": Peer(
        label="ours pinned uint8, ONNX Runtime",
        runtime="onnxruntime",
        step="ours-pinned-int8",
        precision="int8",
        file="pinned/model_uint8.onnx",
    ),
    "ours-static-int8-openvino": Peer(
        label="ours static int8, OpenVINO", runtime="openvino", step="ours-static-int8", precision="int8"
    ),
    "ours-dynamic-int8-openvino": Peer(
        label="ours dynamic int8, OpenVINO", runtime="openvino", step="ours-dynamic-int8", precision="int8"
    ),
    "ours-pinned-int8-openvino": Peer(
        label="ours pinned int8, OpenVINO", runtime="openvino", step="ours-pinned-int8", precision="int8"
    ),
}


def chain(step: str) -> tuple[str, ...]:
    """The step and what comes before it, first things first; the weights themselves aside."""
    before = STEPS[step].needs
    return (*(chain(before) if before else ()), step) if step != "weights" else ()
