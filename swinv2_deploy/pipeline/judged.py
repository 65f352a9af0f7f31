"""Forms of a classifier judged on the same held-out photographs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.dataset import ImageFolder
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import CALIBRATORS, QuantizeSpec
from swinv2_deploy.verify import VerifySpec, verify


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a form of a classifier makes of held-out photographs.

    Attributes:
        form: ``fp32``, or the method and calibrator of an INT8 form.
        images: Photographs with a label that the model knows.
        top1: Share of them named rightly, in [0, 1].
        lost: Points lost to the FP32 model in PyTorch.
        interval: Paired 95 % interval of them.
        flips: Photographs that are named differently.
        sqnr_db: Signal to noise of the logits in dB.
    """

    form: str
    images: int
    top1: float
    lost: float
    interval: tuple[float, float]
    flips: int
    sqnr_db: float


def judge(artifact: ModelArtifact, held: ImageFolder, form: str, name: str = "model_int8") -> Verdict:
    """Judge one ONNX file of an artifact on photographs that no stage has seen, against its FP32 model in PyTorch.

    Raises:
        ArtifactError: When there is no such file, or the photographs have no labels that the model knows.
    """
    spec = VerifySpec(
        data=held.root, candidates=(name,), latency_seconds=0, sizes=(artifact.preprocessing.size,), batch_sizes=(1,)
    )
    [report] = verify(artifact, spec).candidates
    classes = report.classes
    if classes is None or classes.top1 is None or classes.drop is None or classes.drop_interval is None:
        raise ArtifactError(
            f"The photographs in {held.root} have no labels that {artifact.path} knows; name folders as its classes."
        )
    return Verdict(
        form=form,
        images=classes.labeled,
        top1=classes.top1[1],
        lost=classes.drop,
        interval=classes.drop_interval,
        flips=len(classes.flips),
        sqnr_db=report.outputs["logits"].sqnr_db,
    )


def judge_methods(
    artifact: ModelArtifact, trained: ModelArtifact | None, spec: QuantizeSpec, images: ImageFolder, held: ImageFolder
) -> list[Verdict]:
    """FP32, post-training quantization with every calibrator, and the trained form, on the same held-out photographs.

    Args:
        artifact: FP32 artifact.
        trained: The same after quantization-aware training, or None.
        spec: How to calibrate, whatever its calibrator.
        images: Photographs to calibrate on.
        held: Photographs to judge on.

    Raises:
        ArtifactError: When the photographs have no labels that the model knows.
    """
    verdicts = [judge(artifact, held, "fp32", "model")]
    with tempfile.TemporaryDirectory() as folder:
        for calibrator in CALIBRATORS:
            plain = replace(
                spec, calibrator=calibrator, unsigned="never", sensitivity=False, budget_drop=None, budget_sqnr=None
            )
            made = quantize(artifact, plain, images, Path(folder) / calibrator).artifact
            verdicts.append(judge(made, held, f"ptq, {calibrator}"))
    if trained is not None:
        verdicts.append(judge(trained, held, "qat"))
    return verdicts
