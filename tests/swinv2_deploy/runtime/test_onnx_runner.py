"""ONNX Runtime as a runner, and which files it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import BackendMissing, RunnerError, SpecError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.runtime import OnnxRunner, TorchRunner


@pytest.fixture
def file(tiny_artifact: ModelArtifact) -> Path:
    return tiny_artifact.onnx_files["model"]


@pytest.fixture
def copied(file: Path, tmp_path: Path) -> Callable[..., Path]:
    """Function from an edit to a copy of the file."""

    def copy(edit: Callable[[onnx.ModelProto], Any]) -> Path:
        proto = onnx.load(file)
        edit(proto)
        onnx.save(proto, tmp_path / "copy.onnx")
        return tmp_path / "copy.onnx"

    return copy


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (3, 16, 96), (2, 57, 41)])
def test_equals_the_reference(batch: int, height: int, width: int, tiny_artifact: ModelArtifact, file: Path) -> None:
    """Both runners give the same logits under the same name."""
    images = np.random.default_rng(0).standard_normal((batch, 3, height, width), dtype=np.float32)

    expected = TorchRunner(load_model(tiny_artifact)).run(images)
    found = OnnxRunner(file, threads=1).run(images)

    assert list(expected) == list(found)
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4)


def test_tells_what_it_is(file: Path) -> None:
    """Name, precision, sizes and the provider that really runs."""
    runner = OnnxRunner(file)

    assert ("model", "fp32", "CPUExecutionProvider") == (runner.name, runner.precision, runner.provider)
    assert ((16, 16), (64, 96)) == (runner.resolutions.min, runner.resolutions.max)


@pytest.mark.parametrize("size", [(15, 32), (65, 32), (32, 97)])
def test_a_size_out_of_range_is_refused(size: tuple[int, int], file: Path) -> None:
    """A size the graph may be wrong at is never computed; the message tells the range and what to do."""
    with pytest.raises(RunnerError, match=r"outside what this file was exported for: 16x16 to 64x96 px.*export again"):
        OnnxRunner(file).run(np.zeros((1, 3, *size), np.float32))


def test_other_images_are_refused(file: Path) -> None:
    """ONNX Runtime never sees a wrong type."""
    with pytest.raises(RunnerError, match=r"float64 images of shape \(1, 3, 32, 32\); expected float32"):
        OnnxRunner(file).run(np.zeros((1, 3, 32, 32)))  # type: ignore[arg-type]


def test_a_missing_provider_is_no_fallback(file: Path) -> None:
    """Asking for CUDA where there is none fails instead of timing the CPU."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    with pytest.raises(BackendMissing, match=r"has no CUDAExecutionProvider.*--provider cpu"):
        OnnxRunner(file, provider="cuda")


def test_a_silent_fallback_is_noticed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider is read from the session, not from what was asked for."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["AzureExecutionProvider"])

    with pytest.raises(BackendMissing, match="fell back from CPUExecutionProvider to AzureExecutionProvider"):
        OnnxRunner(file)


@pytest.mark.parametrize(("options", "message"), [({"provider": "tpu"}, "no provider 'tpu'"), ({"threads": 0}, "threads is 0")])
def test_impossible_options_are_usage_errors(options: dict[str, Any], message: str, file: Path) -> None:
    with pytest.raises(SpecError, match=message):
        OnnxRunner(file, **options)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100, b"\x08\x0a\xff\xff\xff"])
def test_garbage_is_refused(content: bytes, tmp_path: Path) -> None:
    """Whatever a file holds, the answer is one clear error."""
    (tmp_path / "model.onnx").write_bytes(content)

    with pytest.raises(RunnerError, match="export"):
        OnnxRunner(tmp_path / "model.onnx")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_truncated_file_is_refused(share: float, file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: int(share * len(content))])

    with pytest.raises(RunnerError):
        OnnxRunner(tmp_path / "model.onnx")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="There is no ONNX file at"):
        OnnxRunner(tmp_path / "model.onnx")


def test_a_foreign_model_is_refused(tmp_path: Path) -> None:
    """A file of another exporter has no sizes that could be trusted."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "model.onnx")

    with pytest.raises(RunnerError, match=r"no swinv2_deploy.schema = 1 in its metadata"):
        OnnxRunner(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 2, "no swinv2_deploy.schema = 1"),
        ("resolutions", None, "incomplete"),
        ("resolutions", {"min": [9, 9], "opt": [1, 1], "max": [1, 1]}, "incomplete"),
        ("config", "text", "incomplete"),
        ("precision", "fp4", "precision 'fp4'; expected one of"),
    ],
)
def test_damaged_metadata_is_refused(
    key: str, value: Any, message: str, copied: Callable[..., Path], edit_metadata: Callable[..., Any]
) -> None:
    with pytest.raises(RunnerError, match=message):
        OnnxRunner(copied(edit_metadata(key, value)))


def test_other_inputs_and_outputs_are_refused(copied: Callable[..., Path]) -> None:
    """The message tells what the file takes and what was expected."""

    def rename(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].name = "x"

    def widen(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE

    def drop(proto: onnx.ModelProto) -> None:
        proto.graph.output[0].name = "scores"

    for edit in (rename, widen):
        with pytest.raises(
            RunnerError, match=r"takes .*; expected one input, pixel_values float32 \(batch, 3, height, width\)"
        ):
            OnnxRunner(copied(edit))
    with pytest.raises(RunnerError, match=r"returns \['scores'\].*\['logits'\]"):
        OnnxRunner(copied(drop))


class TestExternalData:
    """Weights in files beside the model: a hostile file must not reach outside its folder."""

    @pytest.fixture
    def split(self, file: Path, tmp_path: Path) -> Callable[[str], Path]:
        """Function from a location to a copy whose weights are said to be there; they lie in ``inside/weights``."""

        def make(location: str) -> Path:
            folder = tmp_path / "inside"
            folder.mkdir()
            onnx.save(
                onnx.load(file), folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=1024
            )
            proto = onnx.load(folder / "model.onnx", load_external_data=False)
            for tensor in proto.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = location
            onnx.save(proto, folder / "model.onnx")
            return folder / "model.onnx"

        return make

    def test_weights_beside_the_model_load(self, split: Callable[[str], Path], file: Path) -> None:
        runner = OnnxRunner(split("weights"))
        images = np.ones((1, 3, 32, 32), np.float32)

        np.testing.assert_array_equal(runner.run(images)["logits"], OnnxRunner(file).run(images)["logits"])
        assert runner.facts.size_bytes == sum(path.stat().st_size for path in runner.path.parent.iterdir())

    @pytest.mark.parametrize("location", ["../weights", "a/../../weights", "{folder}/outside", "", "..\\weights"])
    def test_a_path_out_is_refused(self, location: str, split: Callable[[str], Path], tmp_path: Path) -> None:
        (tmp_path / "outside").write_bytes(b"x")

        with pytest.raises(RunnerError, match="outside its own folder"):
            OnnxRunner(split(location.format(folder=tmp_path)))

    @pytest.mark.parametrize("link", [os.symlink, os.link], ids=["soft", "hard"])
    def test_links_are_refused(self, link: Callable[[Path, Path], None], split: Callable[[str], Path], tmp_path: Path) -> None:
        """A hard link is a second name of a file that may lie anywhere."""
        model = split("linked")
        os.replace(model.parent / "weights", tmp_path / "secret")
        link(tmp_path / "secret", model.parent / "linked")

        with pytest.raises(RunnerError, match="is a link or leads out"):
            OnnxRunner(model)

    def test_missing_weights_are_named(self, split: Callable[[str], Path]) -> None:
        with pytest.raises(RunnerError, match=r"needs its weights in .*gone.*copy both"):
            OnnxRunner(split("gone"))

    def test_cut_off_weights_are_named(self, split: Callable[[str], Path]) -> None:
        model = split("weights")
        os.truncate(model.parent / "weights", 10)

        with pytest.raises(RunnerError, match=r"has 10 bytes and .* the file was cut off"):
            OnnxRunner(model)

    def test_tensors_inside_nodes_are_looked_at(self, copied: Callable[..., Path]) -> None:
        """A constant in a branch of an If can point outside as well."""

        def hide(proto: onnx.ModelProto) -> None:
            tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
            tensor.external_data.add(key="location", value="/etc/passwd")
            inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "branch", [], [])
            proto.graph.node.append(helper.make_node("If", ["condition"], ["c"], then_branch=inner, else_branch=inner))

        with pytest.raises(RunnerError, match="wants weights from '/etc/passwd'"):
            OnnxRunner(copied(hide))


def test_importing_runners_loads_no_onnx() -> None:
    """Back ends load when a runner is made."""
    code = "import sys, swinv2_deploy.runtime; sys.exit('onnx' in sys.modules or 'onnxruntime' in sys.modules)"

    assert 0 == subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode
