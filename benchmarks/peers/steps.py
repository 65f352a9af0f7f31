"""What each preparation does. Every one runs in a fresh process of its own, so that its seconds and its memory are its own.

python -m benchmarks.peers.steps CASE STEP BATCH FOLDER SOURCE writes into FOLDER, which is empty, what it makes of SOURCE, the
folder of the step that it needs. It prints JSON: seconds of the work itself, without imports and reading weights, the share of the
CPU time that others took meanwhile, and the process's peak memory in bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.peers.cases import CASES, Case
from benchmarks.peers.guard import foreign_share, snapshot
from benchmarks.peers.loading import in_batches
from benchmarks.peers.process import peak_memory, private_output

if TYPE_CHECKING:
    from torch import nn

Work = Callable[[], object]


def weights(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """The weights and images that everybody uses."""
    from benchmarks.peers.models import write_weights

    return lambda: write_weights(case, folder)


def timm_compile(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """Compile for the first time; the files of the compiler are kept, so that later processes load them."""
    import numpy as np
    import torch

    from benchmarks.peers.models import timm_model

    images = torch.from_numpy(in_batches(np.load(source / "drift.npy"), batch)[0])
    model = torch.compile(timm_model(case, source))

    def work() -> None:
        with torch.inference_mode():
            model(images)

    return work


def timm_onnx(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """timm's model through PyTorch's exporter, one size."""
    from benchmarks.peers.models import timm_model

    return _onnx_work(timm_model(case, source), case, batch, folder)


def transformers_onnx(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """transformers' model through PyTorch's exporter, one size."""
    from benchmarks.peers.models import transformers_model

    return _onnx_work(transformers_model(case, source), case, batch, folder)


def timm_ort_int8(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """ONNX Runtime's static quantization of timm's graph, as its documentation says: pre-process, then QDQ with U8 and S8."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    pixels = np.load(source.parent / "weights" / "calibration.npy")

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # has no type information
        def __init__(self) -> None:
            self.feeds = iter([{"pixel_values": chunk} for chunk in in_batches(pixels, batch)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    def work() -> None:
        # One file, for it loses weights that lie outside; without symbolic shapes, which fail on PyTorch's graph.
        inline, prepared = folder / "inline.onnx", folder / "prepared.onnx"
        onnx.save(onnx.load(source / "model.onnx"), inline)
        quant_pre_process(inline, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            folder / "model.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        )
        inline.unlink()
        prepared.unlink()

    return work


def timm_nncf(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """NNCF's post-training quantization of timm's graph for OpenVINO, with its preset for transformers."""
    import nncf
    import numpy as np
    import openvino

    pixels = np.load(source.parent / "weights" / "calibration.npy")
    chunks = in_batches(pixels, batch)

    def work() -> None:
        model = openvino.Core().read_model(source / "model.onnx")
        quantized = nncf.quantize(model, nncf.Dataset(chunks), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(chunks))
        openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)

    return work


def ours_static(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """This project's export for one size, its comparison with the reference model included."""
    return _our_export(case, folder, source, static=True)


def ours_dynamic(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """This project's default export, any batch and size, its comparison with the reference model included."""
    return _our_export(case, folder, source, static=False)


def ours_static_int8(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """This project's quantization, both INT8 files."""
    return _our_int8(folder, source)


def ours_dynamic_int8(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """This project's quantization, both INT8 files."""
    return _our_int8(folder, source)


def ours_pinned(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """The dynamic file for this batch and size, its comparison with the file it is made from included."""
    return _our_pin(case, batch, folder, source)


def ours_pinned_int8(case: Case, batch: int, folder: Path, source: Path) -> Work:
    """All dynamic files for this batch and size."""
    return _our_pin(case, batch, folder, source)


def _onnx_work(model: nn.Module, case: Case, batch: int, folder: Path) -> Work:
    import torch

    images = torch.zeros(batch, case.config.num_channels, *case.config.image_size)

    def work() -> None:
        torch.onnx.export(
            model, (images,), folder / "model.onnx", dynamo=True, input_names=["pixel_values"], output_names=["logits"]
        )

    return work


def _our_export(case: Case, folder: Path, weights_folder: Path, *, static: bool) -> Work:
    from benchmarks.peers.models import source
    from swinv2_deploy.export import ExportSpec, export

    model = source(case, weights_folder)
    return lambda: export(model, ExportSpec(static=static), folder / "artifact")


def _our_int8(folder: Path, source: Path) -> Work:
    from benchmarks.peers.models import PHOTOS
    from calibration.dataset import ImageFolder
    from swinv2_deploy.artifacts import read_artifact
    from swinv2_deploy.quantize import QuantizeSpec, quantize

    artifact = read_artifact(source / "artifact")
    images = ImageFolder.open(source.parent / "weights" / PHOTOS)
    return lambda: quantize(artifact, QuantizeSpec(unsigned="always"), images, folder / "artifact")


def _our_pin(case: Case, batch: int, folder: Path, source: Path) -> Work:
    from swinv2_deploy.artifacts import read_artifact
    from swinv2_deploy.export.pin import pin_files

    artifact = read_artifact(source / "artifact")
    return lambda: pin_files(artifact, (batch, *case.config.image_size), out=folder / "pinned")


WORK: dict[str, Callable[[Case, int, Path, Path], Work]] = {
    "weights": weights,
    "timm-compile": timm_compile,
    "timm-onnx": timm_onnx,
    "transformers-onnx": transformers_onnx,
    "timm-ort-int8": timm_ort_int8,
    "timm-nncf": timm_nncf,
    "ours-static": ours_static,
    "ours-dynamic": ours_dynamic,
    "ours-static-int8": ours_static_int8,
    "ours-dynamic-int8": ours_dynamic_int8,
    "ours-pinned": ours_pinned,
    "ours-pinned-int8": ours_pinned_int8,
}


def main() -> None:
    """Do one step."""
    case, step, batch, folder, source = sys.argv[1:]
    with private_output() as answer:
        work = WORK[step](CASES[case], int(batch), Path(folder), Path(source))
        before = snapshot()
        work()
        after = snapshot()
        foreign = foreign_share(before, after, psutil.cpu_count() or 1)
        answer(json.dumps({"seconds": after.wall - before.wall, "foreign": foreign, "peak_memory": peak_memory()}))


if __name__ == "__main__":
    main()
