"""The export stage: what an artifact holds, that a wrong graph is never written, and that the same request is the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from reference_model.config import SwinV2Config, make_config
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from reference_model.variants import VARIANTS, Variant
from swinv2_deploy.artifacts import ModelArtifact, ResolutionRange, WeightsOrigin, file_sha256
from swinv2_deploy.errors import ArtifactError, ExportError, SpecError
from swinv2_deploy.export import ExportSpec, export, to_onnx
from swinv2_deploy.export.spec import parse_size
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.modeling.request import SourceRequest
from swinv2_deploy.modeling.source import Source, resolve, untrained_model
from swinv2_deploy.runtime import TorchRunner
from swinv2_deploy.runtime.grid import BATCHES, full_grid, quick_grid
from swinv2_deploy.runtime.proof import read_grid

Make = Callable[[SwinV2Config], SwinV2]
KINDS = ("tiny", "small", "base", "large")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def source_of(model: SwinV2, **others: Any) -> Source:
    return Source(
        model=model,
        preprocessing=Preprocessing.published(model.config.image_size[0]),
        origin=WeightsOrigin(kind="file", source="weights.pth", sha256="0" * 64),
        name="tiny",
        **others,
    )


def with_task(config: SwinV2Config, task: Any, *features: str) -> SwinV2Config:
    if task == "classification":
        return config
    return replace(config, task=task, num_classes=0, out_features=features if task == "backbone" else ())


def properties(artifact: ModelArtifact) -> dict[str, Any]:
    """Metadata of the exported file, parsed."""
    found = {}
    for entry in onnx.load(artifact.onnx_files["model"], load_external_data=False).metadata_props:
        key = entry.key.removeprefix("swinv2_deploy.")
        found[key] = entry.value if key in ("model_sha256", "precision") else json.loads(entry.value)
    return found


def outputs(artifact: ModelArtifact, images: torch.Tensor) -> dict[str, Any]:
    session = ort.InferenceSession(str(artifact.onnx_files["model"]), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"pixel_values": images.numpy()}), strict=True))


def noise(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width))


# --- content -----------------------------------------------------------------------------------------------------------


def test_an_artifact_holds_model_preprocessing_and_graph(tiny_model: SwinV2, tmp_path: Path) -> None:
    """And its lineage says where they come from."""
    spec = ExportSpec(smallest=(16, 16), largest=(64, 64))
    parent = {"name": "p", "sha256": "1" * 64}
    artifact = export(source_of(tiny_model, parent=parent, seed=4), spec, tmp_path / "tiny")

    assert sorted(artifact.lineage.files) == ["config.json", "model.safetensors", "onnx/model.onnx", "preprocessor_config.json"]
    assert artifact.lineage.stage == "export"
    assert artifact.lineage.parent == parent
    assert artifact.lineage.seed == 4
    assert artifact.lineage.weights.source == "weights.pth"
    assert artifact.lineage.spec == json.loads(json.dumps(spec.to_dict()))
    assert artifact.config == tiny_model.config
    assert torch.equal(load_model(artifact).state_dict()["head.weight"], tiny_model.state_dict()["head.weight"])


def test_the_file_alone_says_how_to_use_it(tiny_config: SwinV2Config, make_model: Make, tmp_path: Path) -> None:
    """Whoever has only ``model.onnx`` finds labels, preprocessing, sizes and the hash of its weights."""
    model = make_model(replace(tiny_config, labels=("ä", "b", "c", "d", "e")))
    artifact = export(source_of(model), ExportSpec(smallest=(16, 24), largest=(64, 96)), tmp_path / "tiny")
    found = properties(artifact)

    assert found["schema"] == 1
    assert found["precision"] == "fp32"
    assert found["labels"] == ["ä", "b", "c", "d", "e"]
    assert SwinV2Config.from_dict(found["config"]) == model.config
    recipe = {key: tuple(value) if isinstance(value, list) else value for key, value in found["preprocessing"].items()}
    assert Preprocessing(**recipe) == artifact.preprocessing
    assert ResolutionRange.from_dict(found["resolutions"]) == ResolutionRange(min=(16, 24), opt=(32, 32), max=(64, 96))
    assert found["weights_origin"]["sha256"] == "0" * 64
    assert found["model_sha256"] == file_sha256(artifact.file("model.safetensors"))
    assert found["parent"] == {}
    assert read_grid(found["proof"]) == {(32, 32): (1, 2), (16, 24): (1, 2, 3), (25, 24): (1, 2, 3)}
    assert 0 < found["proof"]["max_abs"] < 1e-4
    assert found["proof"]["max_abs"] == max(error for row in found["proof"]["grid"] for error in row["errors"].values())


def test_inputs_and_outputs_have_the_names_users_expect(tiny_config: SwinV2Config, make_model: Make, tmp_path: Path) -> None:
    """transformers' names, and named axes."""
    expected = {
        "classification": {"logits"},
        "encoder": {"last_hidden_state", "pooler_output"},
        "backbone": {"feature_maps.stem", "feature_maps.stage2"},
    }
    for task, names in expected.items():
        config = with_task(tiny_config, task, "stem", "stage2")
        artifact = export(source_of(make_model(config)), ExportSpec(), tmp_path / task)
        graph = onnx.load(artifact.onnx_files["model"]).graph
        (pixels,) = graph.input
        axes = [dim.dim_param or dim.dim_value for dim in pixels.type.tensor_type.shape.dim]
        assert (pixels.name, axes) == ("pixel_values", ["batch", 3, "height", "width"])
        assert {output.name for output in graph.output} == names


@pytest.mark.parametrize("task", ["classification", "encoder", "backbone"])
def test_every_task_is_right_at_sizes_never_tried(
    task: Any, tiny_config: SwinV2Config, make_model: Make, tmp_path: Path
) -> None:
    """Also where windows shrink and maps are padded."""
    config = with_task(tiny_config, task, "stem", "stage1", "stage2")
    model = make_model(config)
    artifact = export(source_of(model), ExportSpec(smallest=(8, 8)), tmp_path / "a")
    for height, width, batch in ((32, 32, 3), (9, 40, 1), (50, 31, 2), (128, 128, 1), (8, 8, 1)):
        images = noise(height, width, batch)
        expected = TorchRunner(model).run(images.numpy())
        found = outputs(artifact, images)
        for name, wanted in expected.items():
            assert found[name].shape == wanted.shape
            assert np.abs(found[name] - wanted).max() < 1e-4, (name, height, width)


def test_weights_are_stored_once(tiny_model: SwinV2, tmp_path: Path) -> None:
    """The file is hardly larger than the parameters."""
    nano = untrained_model(VARIANTS["nano"].config, 0)
    artifact = export(source_of(nano), ExportSpec(), tmp_path / "nano")
    parameters = sum(parameter.numel() for parameter in nano.parameters())
    stored = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(artifact.onnx_files["model"]).graph.initializer)

    assert 0.9 < stored / parameters < 1.1
    assert artifact.onnx_files["model"].stat().st_size < 1.15 * 4 * parameters


def test_large_weights_go_beside_the_graph(tiny_model: SwinV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A protobuf file ends at 2 GiB; the file beside it is hashed like every other."""
    monkeypatch.setattr(to_onnx, "LARGEST_INLINE", 1000)
    artifact = export(source_of(tiny_model), ExportSpec(), tmp_path / "tiny")
    images = noise(32, 32)
    with torch.no_grad():
        expected = tiny_model(images).numpy()

    assert "onnx/model.onnx.data" in artifact.lineage.files
    assert artifact.onnx_files["model"].stat().st_size < 200_000
    assert np.abs(outputs(artifact, images)["logits"] - expected).max() < 1e-4


def test_evidence_of_images_seen_travels_along(
    tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], tmp_path: Path
) -> None:
    """What the weights were trained on stays known after another export."""
    trained = changed(tiny_artifact, files={"training_manifest.json": {"files": {"a.png": "0" * 64}}})
    again = export(resolve(SourceRequest(model=str(trained.path))), ExportSpec(), tmp_path / "again")
    assert again.lineage.files["training_manifest.json"] == trained.lineage.files["training_manifest.json"]
    assert again.lineage.parent["sha256"] == trained.sha256


# --- sizes -------------------------------------------------------------------------------------------------------------


def test_a_static_graph_takes_one_size_and_any_batch(tiny_model: SwinV2, tmp_path: Path) -> None:
    """Its axes are numbers, and another size is refused by the runtime."""
    artifact = export(source_of(tiny_model), ExportSpec(static=True), tmp_path / "tiny")
    (pixels,) = onnx.load(artifact.onnx_files["model"]).graph.input

    assert [dim.dim_param or dim.dim_value for dim in pixels.type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    assert outputs(artifact, noise(32, 32, 5))["logits"].shape == (5, 5)
    assert read_grid(properties(artifact)["proof"]) == {(32, 32): (1, 2)}
    with pytest.raises(Exception, match="invalid dimensions"):
        outputs(artifact, noise(32, 40))


@pytest.mark.parametrize("static", [True, False])
def test_preprocessing_follows_the_size_that_was_asked_for(static: bool, tiny_model: SwinV2, tmp_path: Path) -> None:
    """Else every image would be refused by the graph, or shown at another size than the one it is meant for."""
    artifact = export(source_of(tiny_model), ExportSpec(static=static, resolution=(48, 40)), tmp_path / "tiny")
    assert artifact.preprocessing.size == (48, 40)
    assert tuple(properties(artifact)["preprocessing"]["size"]) == (48, 40)


def test_preprocessing_of_its_own_size_is_kept(tiny_model: SwinV2, tmp_path: Path) -> None:
    """A model may be used at another size than it was trained for, as long as the graph takes it."""
    source = replace(source_of(tiny_model), preprocessing=Preprocessing(size=(40, 40), resize_shortest=None))
    assert export(source, ExportSpec(), tmp_path / "inside").preprocessing.size == (40, 40)
    assert export(source, ExportSpec(largest=(36, 36)), tmp_path / "outside").preprocessing.size == (32, 32)


def test_the_default_range_is_from_32_to_four_times_the_trained_size(tiny_config: SwinV2Config) -> None:
    """Models trained below 32 px begin at their own size."""
    assert ExportSpec().resolutions(tiny_config) == ResolutionRange(min=(32, 32), opt=(32, 32), max=(128, 128))
    small = replace(tiny_config, image_size=(16, 24))
    assert ExportSpec().resolutions(small) == ResolutionRange(min=(16, 24), opt=(16, 24), max=(64, 96))
    asked = ExportSpec(resolution=(64, 96)).resolutions(tiny_config)
    assert asked == ResolutionRange(min=(32, 32), opt=(64, 96), max=(256, 384))


@pytest.mark.parametrize(
    "spec", [ExportSpec(smallest=(33, 32)), ExportSpec(largest=(64, 31)), ExportSpec(resolution=(16, 16))], ids=str
)
def test_a_range_without_the_size_it_is_meant_for_is_refused(
    spec: ExportSpec, tiny_config: SwinV2Config, tiny_model: SwinV2, tmp_path: Path
) -> None:
    """Before anything is written."""
    if spec.resolution is None:
        with pytest.raises(SpecError, match="widen --min-res and --max-res"):
            export(source_of(tiny_model), spec, tmp_path / "tiny")
        assert list(tmp_path.iterdir()) == []
    else:
        assert spec.resolutions(tiny_config).min == (16, 16)


@pytest.mark.parametrize("side", ["smallest", "largest"])
def test_static_and_a_range_contradict_each_other(side: str) -> None:
    """Said in the words of the command line."""
    with pytest.raises(SpecError, match="leave out --min-res and --max-res"):
        ExportSpec(static=True, **{side: (32, 32)})


@pytest.mark.parametrize(
    ("text", "size"), [("384", (384, 384)), ("384x512", (384, 512)), (" 384X512 ", (384, 512)), ("1x999999", (1, 999999))]
)
def test_sizes_are_read_height_first(text: str, size: tuple[int, int]) -> None:
    """One number is a square."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "384x0", "x", "-1", "384x", "3.5", "384*512", "9999999", "1x2x3"])
def test_other_texts_are_no_size(text: str) -> None:
    """The message shows the form and the order."""
    with pytest.raises(SpecError, match="384x512"):
        parse_size(text)


@pytest.mark.parametrize(
    "sizes",
    [((32, 32), (256, 256), (1024, 1024)), ((16, 24), (32, 32), (64, 96)), ((8, 8), (9, 9), (9, 9)), ((8, 8), (8, 8), (8, 9))],
)
def test_sizes_tried_lie_in_the_range(sizes: Any) -> None:
    """And hold the ends that break first: the smallest, the intended, and one that nothing divides."""
    resolutions = ResolutionRange(min=sizes[0], opt=sizes[1], max=sizes[2])
    for grid in (quick_grid(resolutions), full_grid(resolutions)):
        assert {resolutions.opt, resolutions.min} <= set(grid)
        assert all(resolutions.refusal(*size) is None for size in grid)
        assert set(grid[resolutions.min]) == set(BATCHES) or len(grid) < 4


# --- a wrong graph -----------------------------------------------------------------------------------------------------


def spoil(name: str, change: Callable[[np.ndarray[Any, Any]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the exporter write one initializer wrong."""

    class Spoiled(to_onnx.SwinGraph):
        def build(self, producer_version: str) -> ir.Model:
            model = super().build(producer_version)
            value = model.graph.initializers[name]
            assert value.const_value is not None
            array = value.const_value.numpy().copy()
            change(array)
            value.const_value = ir.Tensor(array, name=name)
            return model

    monkeypatch.setattr(to_onnx, "SwinGraph", Spoiled)


@pytest.mark.parametrize("value", [0.3, float("nan"), float("inf")])
def test_one_wrong_weight_is_found_and_nothing_is_written(
    value: float, tiny_model: SwinV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate can fail: a single number of a single weight."""

    def change(array: np.ndarray[Any, Any]) -> None:
        array.flat[3] += value

    spoil("head.bias", change, monkeypatch)
    with pytest.raises(ExportError, match=r"wrong: model: logits differs by \S+ at 32x32 px in a batch of \d; at most 1.0e-04"):
        export(source_of(tiny_model), ExportSpec(), tmp_path / "artifacts" / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_export_leaves_the_artifact_that_was_there(
    tiny_model: SwinV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with --force."""
    before = export(source_of(tiny_model), ExportSpec(), tmp_path / "tiny")
    spoil("head.bias", lambda array: array.fill(9), monkeypatch)
    with pytest.raises(ExportError):
        export(source_of(tiny_model), ExportSpec(), tmp_path / "tiny", force=True)
    assert before.file("onnx/model.onnx").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_graph_that_no_runtime_loads_is_an_export_error(
    tiny_model: SwinV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a traceback of the runtime."""

    class Broken(to_onnx.SwinGraph):
        def build(self, producer_version: str) -> ir.Model:
            model = super().build(producer_version)
            next(node for node in model.graph if node.op_type == "Gemm").op_type = "NoSuchOperator"
            return model

    monkeypatch.setattr(to_onnx, "SwinGraph", Broken)
    with pytest.raises(ExportError, match="not valid ONNX"):
        export(source_of(tiny_model), ExportSpec(), tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_artifact_is_not_overwritten(tiny_artifact: ModelArtifact, tiny_model: SwinV2) -> None:
    """Only with --force."""
    with pytest.raises(ArtifactError, match="exists already"):
        export(source_of(tiny_model), ExportSpec(), tiny_artifact.path)


# --- the same bytes, and the whole zoo ---------------------------------------------------------------------------------

TWICE = """
    import sys
    from pathlib import Path
    import torch
    from reference_model.config import make_config
    from reference_model.preprocessing import Preprocessing
    from swinv2_deploy.artifacts import WeightsOrigin
    from swinv2_deploy.export import ExportSpec, export, to_onnx
    from swinv2_deploy.modeling.source import Source, untrained_model

    config = make_config(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, image_size=32, patch_size=2, num_classes=5)
    source = Source(
        model=untrained_model(config, 0),
        preprocessing=Preprocessing.published(32),
        origin=WeightsOrigin(kind="untrained", source="seed 0"),
        name="tiny",
    )
    torch.set_num_threads(1)
    export(source, ExportSpec(), Path(sys.argv[1]) / "inside")
    to_onnx.LARGEST_INLINE = 1000
    export(source, ExportSpec(sizes=((32, 40), (48, 32))), Path(sys.argv[1]) / "outside")
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Another hash seed, folder, time zone, language and umask reach neither graphs nor weights beside them."""
    root = Path(__file__).parents[3]
    hashes = []
    for index, changes in enumerate(
        ({"PYTHONHASHSEED": "1", "TZ": "UTC"}, {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C"})
    ):
        folder = tmp_path / str(index)
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(TWICE), str(folder)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(root), **changes},
            umask=0o077 if index else 0o022,
            check=True,
        )
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lineage.json"]
        hashes.append({path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})

    assert {"inside/onnx/model.onnx", "outside/onnx/model_48x32.onnx", "outside/onnx/model.onnx.data"} <= hashes[0].keys()
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("variant", [v for v in VARIANTS.values() if v.size in KINDS], ids=lambda variant: variant.name)
def test_every_published_model_exports(variant: Variant, tmp_path: Path) -> None:
    """Each window, resolution and pretrained window, with fewer blocks and channels; checked at every size it is declared for."""
    full = variant.config
    config = make_config(
        embed_dim=32,
        depths=(2, 2, 2, 2),
        num_heads=tuple(stage[0] // full.num_heads[0][0] for stage in full.num_heads),
        window_size=full.window_size,
        image_size=full.image_size,
        pretrained_window_sizes=full.pretrained_window_sizes,
        num_classes=10,
    )
    assert config.head_dims == full.head_dims
    source = replace(source_of(untrained_model(config, 0)), preprocessing=Preprocessing.published(variant.resolution))
    artifact = export(source, ExportSpec(), tmp_path / variant.name)

    proof = properties(artifact)["proof"]
    grid = read_grid(proof)
    assert grid is not None
    assert len(grid) == 3
    assert (variant.resolution, variant.resolution) in grid
    assert proof["max_abs"] < 1e-4
