"""Which back ends run which file, what a report says of them, and candidates that take photographs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.dataset import ImageFolder
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, BackendMissing, SpecError
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.source import source_from_artifact
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.runtime import openvino_runner
from swinv2_deploy.verify import VerifySpec, candidates, parse_back_ends, verify
from swinv2_deploy.verify.terminal import drift_tables

BOTH = parse_back_ends("onnxruntime, OpenVINO")


@pytest.fixture
def spec(photos: Path) -> VerifySpec:
    return VerifySpec(data=photos, threads=1, latency_seconds=0.0, limit=7, batch_sizes=(1, 3))


@pytest.fixture(scope="module")
def baked(tiny_artifact: ModelArtifact, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    made = ExportSpec(smallest=(16, 16), largest=(64, 96), bake_preprocessing=True)
    return export(source_from_artifact(tiny_artifact), made, tmp_path_factory.mktemp("baked") / "tiny")


@pytest.fixture(scope="module")
def quantized(tiny_artifact: ModelArtifact, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    made = QuantizeSpec(calibrator="max", unsigned="always")
    return quantize(tiny_artifact, made, ImageFolder.open(photos), tmp_path_factory.mktemp("q") / "tiny-int8").artifact


def test_columns_and_verdict_name_the_back_end(tiny_artifact: ModelArtifact, spec: VerifySpec) -> None:
    report = verify(tiny_artifact, replace(spec, back_ends=BOTH, latency_seconds=0.01))

    assert [("model", "onnxruntime"), ("model", "openvino")] == [(item.name, item.back_end) for item in report.candidates]
    assert ["CPUExecutionProvider", "CPU f32"] == [item.provider for item in report.candidates]
    assert "PASS: model.onnx, model.onnx in OpenVINO: within tolerance" in report.verdict
    assert {"onnxruntime", "openvino"} <= set(report.tools)
    (table,) = drift_tables(report, 120)
    assert ["", "model.onnx", "model.onnx in OpenVINO"] == [column.header for column in table.columns]
    assert report.candidates[0].latencies[0].speedup == 1


def test_openvino_alone_is_its_own_baseline(tiny_artifact: ModelArtifact, spec: VerifySpec) -> None:
    report = verify(tiny_artifact, replace(spec, back_ends=("openvino",), latency_seconds=0.01))

    assert ["model in OpenVINO"] == [item.label for item in report.candidates]
    assert [1, 1] == [latency.speedup for latency in report.candidates[0].latencies]
    assert "onnxruntime" not in report.tools


def test_a_wrong_file_fails_under_the_name_of_each_back_end(
    tiny_artifact: ModelArtifact,
    spec: VerifySpec,
    changed: Callable[..., ModelArtifact],
    edit_initializer: Callable[..., object],
) -> None:
    wrong = changed(tiny_artifact, {"model": edit_initializer("head.bias", lambda bias: bias + 1)})

    failures = verify(wrong, replace(spec, back_ends=BOTH)).failures

    assert {"model", "model in OpenVINO"} == {failure.split(":")[0] for failure in failures}


def test_the_form_of_onnx_runtime_is_left_out_of_openvino(quantized: ModelArtifact, spec: VerifySpec) -> None:
    loaded = candidates.load_candidates(quantized, replace(spec, back_ends=BOTH))
    notices = candidates.back_end_notices(loaded, quantized, replace(spec, back_ends=BOTH))

    assert ["model", "model_int8", "model_uint8", "model in OpenVINO", "model_int8 in OpenVINO"] == list(loaded)
    assert "model_uint8.onnx was left out of OpenVINO: it is the form for ONNX Runtime." in notices


@pytest.mark.parametrize(
    ("products", "words"), [("exact", "Left alone, {} would saturate"), ("fast", "saturate in {} on this CPU")]
)
def test_saturation_is_told(
    products: str, words: str, quantized: ModelArtifact, spec: VerifySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was turned off must be in the user's session, and what was left on is in the figures."""
    told = replace(spec, back_ends=BOTH, integer_products=products, candidates=("model_int8",))  # type: ignore[arg-type]
    loaded = candidates.load_candidates(quantized, told)
    for runner in loaded.values():
        monkeypatch.setattr(runner, "integer_products", "exact" if products == "exact" else "may saturate")
    monkeypatch.setattr(candidates, "saturates", lambda back_end: True)

    assert any(
        words.format("ONNX Runtime and OpenVINO") in notice for notice in candidates.back_end_notices(loaded, quantized, told)
    )
    monkeypatch.setattr(candidates, "saturates", lambda back_end: False)
    for runner in loaded.values():
        monkeypatch.setattr(runner, "integer_products", "exact")
    assert [] == candidates.back_end_notices(loaded, quantized, told)


def test_a_missing_extra_ends_the_verification(
    tiny_artifact: ModelArtifact, spec: VerifySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    openvino_runner._core.cache_clear()
    try:
        with pytest.raises(BackendMissing, match=r"pip install 'swinv2-deploy\[openvino\]'"):
            verify(tiny_artifact, replace(spec, back_ends=BOTH))
    finally:
        openvino_runner._core.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"back_ends": ("tensorflow",)}, r"back_ends is \['tensorflow'\]; expected one or more of"),
        ({"back_ends": ()}, "expected one or more of"),
        ({"back_ends": ("openvino", "openvino")}, "each once"),
        ({"integer_products": "quick"}, "There is no integer_products 'quick'"),
        ({"openvino_precision": "bf16"}, "openvino_precision is 'bf16', which openvino alone reads; add --runner openvino"),
        ({"provider": "cuda", "back_ends": ("openvino",)}, "provider is 'cuda', which onnxruntime alone reads"),
    ],
)
def test_options_that_nothing_would_read_are_usage_errors(options: dict[str, object], message: str, spec: VerifySpec) -> None:
    with pytest.raises(SpecError, match=message):
        replace(spec, **options)  # type: ignore[arg-type]


class TestPhotographs:
    """``model_from_images.onnx`` is given the photographs themselves."""

    def test_passes_beside_the_others(self, baked: ModelArtifact, spec: VerifySpec) -> None:
        """In ONNX Runtime within the tolerance of any FP32 file; in OpenVINO a gray level is allowed to a few pixels."""
        report = verify(baked, replace(spec, back_ends=BOTH, latency_seconds=0.01))
        found = {item.label: item for item in report.candidates}

        assert report.passed, report.failures
        assert ("images", "pixel_values") == (found["model_from_images"].takes, found["model"].takes)
        assert found["model_from_images"].outputs["logits"].max_abs < 2e-5
        assert 7 == report.images
        assert 5 == len(found["model_from_images"].sweep)
        assert (35, 63) == found["model_from_images"].slots.size
        (table,) = drift_tables(report, 200)
        rows = dict(zip(table.columns[0].cells, table.columns[2].cells, strict=True))
        assert "5 of photographs" == rows["sizes tried"]
        assert [1, 8] == [latency.batch for latency in found["model_from_images in OpenVINO"].latencies]
        assert any("Photographs go as they are into model_from_images" in notice for notice in report.notices)
        assert any("model_from_images in OpenVINO: a few pixels are rounded" in notice for notice in report.notices)
        alone = verify(baked, replace(spec, candidates=("model_from_images",)))
        assert not any("a few pixels are rounded" in notice for notice in alone.notices)

    def test_passes_alone_with_damaged_photographs(self, baked: ModelArtifact, spec: VerifySpec, tmp_path: Path) -> None:
        (tmp_path / "own").mkdir()
        for path in ImageFolder.open(spec.data).paths[:3]:
            (tmp_path / "own" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "own/9.png").write_bytes(b"damaged")

        report = verify(baked, replace(spec, candidates=("model_from_images",), data=tmp_path / "own", limit=None))

        assert report.passed, report.failures
        assert ["9.png"] == [skipped.image for skipped in report.skipped]

    def test_sizes_that_are_named_are_those_of_photographs(self, baked: ModelArtifact, spec: VerifySpec) -> None:
        """Beyond the range of the graph that takes pixels, which is not run."""
        report = verify(baked, replace(spec, candidates=("model_from_images",), sizes=((50, 300),)))

        assert report.passed, report.failures
        assert [(50, 300)] == [drift.size for drift in report.candidates[0].sweep]

    def test_no_readable_photograph_is_an_error(self, baked: ModelArtifact, spec: VerifySpec, tmp_path: Path) -> None:
        (tmp_path / "own").mkdir()
        (tmp_path / "own/9.png").write_bytes(b"damaged")

        with pytest.raises(ArtifactError, match="Give a folder with intact images"):
            verify(baked, replace(spec, candidates=("model_from_images",), data=tmp_path / "own", limit=None))

    def test_another_mean_fails(self, baked: ModelArtifact, spec: VerifySpec, changed: Callable[..., ModelArtifact]) -> None:
        """Wrong preprocessing inside the file is found, though the model in it is right."""
        file = baked.onnx_files["model_from_images"]

        def darken(proto: onnx.ModelProto) -> None:
            proto.CopyFrom(onnx.load(file))
            mean = np.asarray(baked.preprocessing.mean, np.float32)
            for tensor in proto.graph.initializer:
                array = numpy_helper.to_array(tensor)
                if array.shape == (1, 3, 1, 1) and np.array_equal(array.reshape(-1), mean):
                    tensor.CopyFrom(numpy_helper.from_array(array * np.float32(0.9), tensor.name))

        report = verify(changed(baked, {"model_from_images": darken}), spec)

        assert {"model": True, "model_from_images": False} == {item.name: item.passed for item in report.candidates}
