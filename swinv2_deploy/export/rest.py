"""An INT8 file with an FP32 rest becomes one with an FP16 or BF16 rest: same integers, same scales, for engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from reference_model.model import SwinV2
from swinv2_deploy.errors import ExportError, RunnerError
from swinv2_deploy.export.precision import half_from_float32
from swinv2_deploy.export.spec import HalfPrecision
from swinv2_deploy.export.write import write_alone
from swinv2_deploy.runtime import OnnxRunner, Proof, masks_for, prove
from swinv2_deploy.runtime.onnx_file import append_metadata, read_facts

LARGEST_CHANGE = 0.25
"""Root mean square of the change over that of the output. Rounding flips amplify in an INT8 network: on noise, the bundled model
moves by 2.0 % with an FP16 rest and by 2.5 % with BF16, and by 0.7 % when 1e-6 is added to its input."""


def half_rest(source: Path, target: Path, precision: HalfPrecision, model: SwinV2) -> Proof:
    """Write an INT8 file again with everything outside its integers in half precision, and run both.

    Args:
        source: File that ``quantize`` wrote, ``model_int8.onnx`` or alike.
        target: File to write; large weights go into one beside it.
        precision: Number format of the rest.
        model: Reference model, which the file is run beside at its main size.

    Returns:
        How far the new file is from the reference at its main size.

    Raises:
        ExportError: When the source is no INT8 file with an FP32 rest, an operator has no such form, or the outputs moved too far.
    """
    facts = read_facts(source)
    if facts.precision != "int8" or facts.rest != "fp32":
        raise ExportError(
            f"{source} is {facts.precision} with {facts.rest} beside it; expected INT8 with an FP32 rest, as quantize writes it."
        )
    graph = half_from_float32(ir.load(source), precision)
    graph.metadata_props.pop("swinv2_deploy.proof", None)
    graph.metadata_props["swinv2_deploy.rest"] = precision
    write_alone(graph, target)
    try:
        proof = _compared(source, target, model)
    except RunnerError as error:
        raise ExportError(f"{target.name} does not run with an {precision} rest: {error}") from error
    append_metadata(target, {"proof": proof.to_dict()})
    return proof


def _compared(source: Path, target: Path, model: SwinV2) -> Proof:
    masks = masks_for(model.config)
    before, after = (OnnxRunner(file, masks=masks, frugal=True) for file in (source, target))
    height, width = after.resolutions.opt
    images = np.random.default_rng(0).standard_normal((1, model.config.num_channels, height, width)).astype(np.float32)
    for name, old in before.run(images).items():
        new = after.run(images)[name]
        change = float(np.sqrt(np.mean((new - old) ** 2) / np.mean(old**2)))
        if not change <= LARGEST_CHANGE:  # also where it is no number
            raise ExportError(
                f"With another rest than FP32 the output {name} of {source.name} moves by {change:.1%} of its size; expected at "
                f"most {LARGEST_CHANGE:.0%}. Keep --rest fp32, or take bf16, whose range is wider."
            )
    return prove(after, model, {after.resolutions.opt: (1,)}, judged=False)
