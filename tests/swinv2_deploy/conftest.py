"""Small artifacts and photographs, made once, and copies of them with something changed."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import onnx

    from reference_model.config import SwinV2Config
    from swinv2_deploy.artifacts import ModelArtifact
    from swinv2_deploy.runtime.tensorrt import Backend

    Edit = Callable[[onnx.ModelProto], None]

CLASSES = ("cat", "cow", "dog", "hen", "owl", "pig", "yak")


@pytest.fixture(scope="session")
def make_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelArtifact]:
    """Function from a task, and whether its weights count as trained, to an exported artifact of two stages at 32 px."""
    import torch

    from reference_model.config import make_config
    from reference_model.model import build_model
    from reference_model.preprocessing import Preprocessing
    from swinv2_deploy.artifacts import WeightsOrigin
    from swinv2_deploy.export import ExportSpec, export
    from swinv2_deploy.modeling.source import Source

    def make(config: SwinV2Config | None = None, *, trained: bool = True, static: bool = False) -> ModelArtifact:
        used = config or make_config(
            embed_dim=16,
            depths=(2, 2),
            num_heads=(2, 4),
            window_size=4,
            image_size=32,
            patch_size=2,
            num_classes=len(CLASSES),
            labels=CLASSES,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build_model(used).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
        origin = WeightsOrigin(kind="trained" if trained else "untrained", source="test")
        preprocessing = Preprocessing(size=(32, 32), resize_shortest=36).with_channels(used.num_channels)
        source = Source(model=model, preprocessing=preprocessing, origin=origin, name="tiny")
        spec = ExportSpec(static=True) if static else ExportSpec(smallest=(16, 16), largest=(64, 96))
        return export(source, spec, tmp_path_factory.mktemp("artifacts") / "tiny")

    return make


@pytest.fixture(scope="session")
def tiny_artifact(make_artifact: Callable[..., ModelArtifact]) -> ModelArtifact:
    """A trained classifier with ``onnx/model.onnx``. Never written to: see ``changed``."""
    return make_artifact()


@pytest.fixture(scope="session")
def masked_artifact(make_artifact: Callable[..., ModelArtifact], tiny_artifact: ModelArtifact) -> ModelArtifact:
    """A masked image model with ``onnx/model.onnx``. Never written to."""
    return make_artifact(replace(tiny_artifact.config, task="masked_image_modeling", num_classes=0, labels=()))


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., ModelArtifact]:
    """Function to a copy of an artifact with ONNX files edited or added, and files added, whose hashes are right again."""
    import onnx

    from swinv2_deploy.artifacts import LINEAGE, Lineage, read_artifact, write_artifact

    def change(
        artifact: ModelArtifact,
        edits: dict[str, Edit] | None = None,
        files: dict[str, Any] | None = None,
        name: str = "changed",
    ) -> ModelArtifact:
        lineage = Lineage(stage="test", spec={}, weights=artifact.lineage.weights)
        with write_artifact(tmp_path / name, lineage) as folder:
            shutil.copytree(artifact.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LINEAGE, "reports"))
            for stem, edit in (edits or {}).items():
                proto = onnx.load(artifact.path / "onnx/model.onnx")
                edit(proto)
                onnx.save(proto, folder / f"onnx/{stem}.onnx")
            for file, content in (files or {}).items():
                (folder / file).write_text(json.dumps(content), "utf-8")
        return read_artifact(tmp_path / name)

    return change


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 images of noise on a gradient, three in each class folder."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for index in range(3):
            light = generator.uniform(0, 200, 3) + np.linspace(0, 50, 40)[:, None, None] + generator.normal(0, 20, (40, 48, 3))
            Image.fromarray(light.clip(0, 255).astype(np.uint8)).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def edit_initializer() -> Callable[..., Edit]:
    """Function from an initializer's name and a function of its array to an edit of an ONNX model."""
    from onnx import numpy_helper

    def make(name: str, function: Callable[[Any], Any]) -> Edit:
        def edit(proto: onnx.ModelProto) -> None:
            (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
            tensor.CopyFrom(numpy_helper.from_array(function(numpy_helper.to_array(tensor).copy()), name))

        return edit

    return make


@pytest.fixture(scope="session")
def edit_metadata() -> Callable[..., Edit]:
    """Function from a metadata key and its new value, None to remove it, to an edit of an ONNX model."""

    def make(key: str, value: Any) -> Edit:
        def edit(proto: onnx.ModelProto) -> None:
            for entry in list(proto.metadata_props):
                if entry.key == f"swinv2_deploy.{key}":
                    proto.metadata_props.remove(entry)
            if value is not None:
                entry = proto.metadata_props.add()
                entry.key, entry.value = f"swinv2_deploy.{key}", json.dumps(value)

        return edit

    return make


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """The module with the three TensorRT APIs; tests are no package."""
    place = Path(__file__).parent / "runtime" / "tensorrt" / "fakes.py"
    spec = importlib.util.spec_from_file_location("tensorrt_fakes", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_backend(fakes: ModuleType) -> Callable[[str], Backend]:
    """Function from a flavor to its back end over a fresh fake module, on a GPU that is not there."""
    from swinv2_deploy.runtime.tensorrt.gpu import Gpu
    from swinv2_deploy.runtime.tensorrt.rtx import TensorRtRtx
    from swinv2_deploy.runtime.tensorrt.tensorrt10 import TensorRt10
    from swinv2_deploy.runtime.tensorrt.tensorrt11 import TensorRt11

    versions = {"tensorrt10": "10.13.2.6", "tensorrt11": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}

    def make(flavor: str) -> Backend:
        trt = fakes.fake_module(flavor, versions[flavor])
        if flavor == "tensorrt_rtx":
            return TensorRtRtx(trt)
        gpu = Gpu("NVIDIA Test", "9.0", 80 * 2**30)
        return TensorRt10(trt, gpu) if flavor == "tensorrt10" else TensorRt11(trt, gpu)

    return make
