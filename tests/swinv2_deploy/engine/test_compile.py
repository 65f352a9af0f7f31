"""Compilation by TensorRT-RTX, which needs no GPU, and by fakes of what does."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from swinv2_deploy.artifacts import ModelArtifact, file_sha256, read_artifact
from swinv2_deploy.engine import EngineSpec
from swinv2_deploy.engine.build import build, interruptible, refuse_inconsistent
from swinv2_deploy.engine.compile import CompileResult
from swinv2_deploy.errors import ArtifactError, BackendMissing, EngineBuildError, SpecError
from swinv2_deploy.pipeline import compile_artifact, planned_engine
from swinv2_deploy.runtime import OnnxRunner
from swinv2_deploy.runtime.tensorrt import Backend, check_engine, choose_backend

Make = Callable[[str], Backend]
real = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs the extra rtx")


def files(artifact: ModelArtifact) -> list[str]:
    folder = artifact.path / "engines"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def run(artifact: ModelArtifact, spec: EngineSpec, name: str | None = None, *, force: bool = False) -> CompileResult:
    return compile_artifact(artifact, spec, planned_engine(artifact, spec, name, force=force), force=force)


def test_every_linear_layer_is_an_int8_product_and_every_attention_fused(compiled: CompileResult) -> None:
    assert len(compiled.report.coverage) == 2
    for covered in compiled.report.coverage:
        assert covered.int8_gemms == len(covered.linear) == 17
        assert covered.fused_attention == len(covered.attention) == 4
        assert {layer.output for layer in covered.linear} == {"fp16"}


def test_memory_and_types_are_read_from_the_log(compiled: CompileResult) -> None:
    report = compiled.report
    assert len(report.activation_bytes) == 2
    assert 0 < report.activation_bytes[0] < report.activation_bytes[1]
    assert report.weight_bytes is not None
    assert report.precision == "int8+fp16"
    assert compiled.sidecar.inputs == {"pixel_values": {"shape": (-1, 3, -1, -1), "dtype": "float32"}}
    assert compiled.sidecar.outputs == {"logits": {"shape": (-1, 3), "dtype": "float32"}}


def test_the_engine_belongs_to_its_artifact(compiled: CompileResult) -> None:
    artifact = read_artifact(compiled.plan.parents[1])
    plan, sidecar = check_engine(artifact, compiled.plan.stem, choose_backend("tensorrt-rtx"))
    assert len(plan) == compiled.report.plan_bytes
    assert sidecar.onnx == "engines/model_int8_fp16.onnx"
    assert [profile["pixel_values"][2] for profile in sidecar.profiles] == [[2, 3, 64, 64], [2, 3, 64, 96]]
    assert files(artifact) == [f"model_int8_fp16{end}" for end in (".html", ".json", ".layers.json", ".onnx", ".plan")]


def test_the_derived_file_has_the_same_integers_and_nearly_the_same_outputs(compiled: CompileResult) -> None:
    artifact = read_artifact(compiled.plan.parents[1])
    derived, source = compiled.plan.with_suffix(".onnx"), artifact.path / "onnx" / "model_int8.onnx"
    integers = [
        {
            tensor.name: tensor.raw_data
            for tensor in onnx.load(path).graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8
        }
        for path in (derived, source)
    ]
    assert integers[0] == integers[1]
    runner = OnnxRunner(derived)
    assert (runner.precision, runner.facts.rest) == ("int8", "fp16")
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    moved = runner.run(images)["logits"] - OnnxRunner(source).run(images)["logits"]
    assert 0 < np.abs(moved).max() < 0.1


def test_the_page_tells_the_story_and_escapes_names(compiled: CompileResult) -> None:
    page = compiled.page.read_text()
    assert "17 / 17" in page
    assert "4 / 4" in page
    assert "<script" not in page
    assert "http" not in page
    layers = json.loads(compiled.plan.with_name("model_int8_fp16.layers.json").read_text())
    assert len(layers["layers"]) == sum(sum(covered.layers.values()) for covered in compiled.report.coverage)


@real
@pytest.mark.parametrize("rest", ["bf16", "fp32"])
def test_the_rest_may_have_other_formats(fresh: ModelArtifact, rest: Any) -> None:
    result = run(fresh, EngineSpec(rest=rest, bounds=((1, 64, 64), None, (1, 64, 64))))
    [covered] = result.report.coverage
    assert covered.int8_gemms == 17
    assert {layer.output for layer in covered.linear} == {rest}
    assert ("engines/" in result.sidecar.onnx) == (rest == "bf16")
    assert result.plan.stem == ("model_int8_bf16" if rest == "bf16" else "model_int8")


@real
def test_an_engine_below_a_floor_is_not_kept(fresh: ModelArtifact) -> None:
    spec = EngineSpec(onnx="model", bounds=((1, 64, 64), None, (1, 64, 64)), require_int8_gemms=1.0)
    with pytest.raises(EngineBuildError, match="0 of 17 linear layers are INT8 products"):
        run(fresh, spec)
    assert not (fresh.path / "engines").exists()
    with pytest.raises(EngineBuildError, match="0 of 4 attentions are fused"):
        run(fresh, replace(spec, require_int8_gemms=None, require_fused_attention=0.5))


@real
def test_what_the_parser_refuses_is_named_and_nothing_is_written(fresh: ModelArtifact, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    model = onnx.load(fresh.path / "onnx" / "model.onnx")
    last = next(node for node in model.graph.node if node.name == "head")
    last.op_type, last.domain = "Unheard", "com.nobody"
    model.opset_import.add(domain="com.nobody", version=1)
    onnx.save(model, path)
    spec = EngineSpec()
    with pytest.raises(EngineBuildError, match=r"cannot read odd\.onnx:\n  head \(Unheard\): .*\n.*Nothing was written"):
        build(choose_backend("tensorrt-rtx"), path, fresh.config, planned_engine(fresh, spec, None).profiles, spec)


@real
def test_the_graph_of_a_frozen_size_is_an_error() -> None:
    with pytest.raises(EngineBuildError, match="sizes that were frozen when it was made"):
        refuse_inconsistent(["fine", "Profile kMAX values are not self-consistent. node_matmul_15 ..."], Path("old.onnx"))
    refuse_inconsistent(["fine"], Path("new.onnx"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"onnx": "model_fp8"}, "has no onnx/model_fp8.onnx; it holds model, model_int8, model_uint8"),
        ({"onnx": "model_uint8"}, "the form for ONNX Runtime alone; compile model_int8"),
        ({"sizes": ((8, 8),)}, "cannot take what its ONNX file does not"),
        ({"rest": "fp8"}, "The rest is to be 'fp8'"),
        ({"level": 6}, "builder level is 6; expected 0"),
        ({"workspace_mib": 0}, "workspace is 0 MiB"),
        ({"require_int8_gemms": 1.5}, "expected a share from 0 to 1"),
        ({"backend": "trt"}, "no back end 'trt'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(fresh: ModelArtifact, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        planned_engine(fresh, EngineSpec(**spec), None)


@real
def test_names_are_plain_and_taken_ones_are_kept(fresh: ModelArtifact) -> None:
    for name in ("", "a/b", "../x", ".hidden"):
        with pytest.raises(SpecError, match="plain file name"):
            planned_engine(fresh, EngineSpec(), name)
    spec = EngineSpec(rest="fp32", bounds=((1, 64, 64), None, (1, 64, 64)))
    first = run(fresh, spec, "mine")
    with pytest.raises(ArtifactError, match="exists already; use --force to replace it, or --name"):
        run(fresh, spec, "mine")
    before = file_sha256(first.plan.with_suffix(".json"))
    run(fresh, spec, "mine", force=True)
    assert file_sha256(first.plan.with_suffix(".json")) != before
    assert read_artifact(fresh.path).sha256 == fresh.sha256


def test_no_back_end_is_one_line_with_exit_code_4(fresh: ModelArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    from swinv2_deploy.runtime.tensorrt import backend

    monkeypatch.setattr(backend, "_installed", lambda name: False)
    with pytest.raises(BackendMissing, match="No TensorRT is installed") as caught:
        planned_engine(fresh, EngineSpec(), None)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("flavor", ["tensorrt10", "tensorrt11"])
def test_options_reach_the_builder_of_tensorrt(fresh: ModelArtifact, make_backend: Make, tmp_path: Path, flavor: str) -> None:
    backend = make_backend(flavor)
    cache = tmp_path / "timing" / "kernels.cache"
    spec = EngineSpec(
        onnx="model",
        level=5,
        workspace_mib=256,
        version_compatible=True,
        hardware_compatible=True,
        weight_streaming=True,
        timing_cache=str(cache),
    )
    planned = replace(planned_engine(fresh, EngineSpec(onnx="model"), None), backend=backend)
    seen: list[tuple[str, int, int]] = []
    result = compile_artifact(fresh, spec, planned, progress=lambda what, done, total: seen.append((what, done, total)))
    [(options,)] = backend.trt.calls["config"]
    assert options.builder_optimization_level == 5
    assert options.profiling_verbosity.name == "DETAILED"
    assert options.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert backend.trt.calls["pool"] == [("WORKSPACE", 256 * 2**20)]
    assert backend.trt.calls["flag"] == [("VERSION_COMPATIBLE",), ("WEIGHT_STREAMING",)]
    assert seen == [("Timing", 0, 3), ("Timing", 1, 3), ("Timing", 2, 3), ("Timing", 3, 3)]
    assert cache.read_bytes() == b"+timed"
    assert [path.name for path in cache.parent.iterdir()] == ["kernels.cache"]
    sidecar = result.sidecar
    assert (sidecar.version_compatible, sidecar.hardware_compatible, sidecar.weight_streaming) == (True, True, True)
    assert sidecar.targets == ("NVIDIA Test (9.0)",)


def test_timings_grow_from_build_to_build_and_foreign_ones_are_measured_anew(
    fresh: ModelArtifact, make_backend: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backend, spec = make_backend("tensorrt11"), EngineSpec(onnx="model")
    planned = replace(planned_engine(fresh, spec, None), backend=backend)
    for _ in range(2):
        compile_artifact(fresh, spec, planned, force=True)
    [cache] = (tmp_path / "swinv2-deploy" / "timing").iterdir()
    assert cache.name == "tensorrt-11.4.0.106-NVIDIA-Test-9.0-.cache"
    assert cache.read_bytes().count(b"+timed") == 3  # the second build began with the first one's, and both are joined
    cache.write_bytes(b"foreign")
    compile_artifact(fresh, spec, planned, force=True)
    assert "measured anew" in caplog.text


@real
def test_rtx_has_no_timing_cache(fresh: ModelArtifact) -> None:
    with pytest.raises(SpecError, match=r"times no kernels when it builds, so mine\.cache would stay empty"):
        run(fresh, EngineSpec(onnx="model", timing_cache="mine.cache"))
    assert not (fresh.path / "engines").exists()


def test_inconsistent_shapes_leave_nothing_behind(fresh: ModelArtifact, make_backend: Make) -> None:
    backend, spec = make_backend("tensorrt11"), EngineSpec(onnx="model", timing_cache="")
    backend.trt.calls["inconsistent"] = [()]
    planned = replace(planned_engine(fresh, spec, None), backend=backend)
    with pytest.raises(EngineBuildError, match="node_matmul_15 has 4 and 9"):
        compile_artifact(fresh, spec, planned)
    assert not (fresh.path / "engines").exists()


def test_an_engine_whose_log_lists_no_layers_is_inspected(fresh: ModelArtifact, make_backend: Make) -> None:
    backend, spec = make_backend("tensorrt10"), EngineSpec(onnx="model", timing_cache="")
    backend.trt.calls["silent"] = [()]
    planned = replace(planned_engine(fresh, spec, None), backend=backend)
    result = compile_artifact(fresh, spec, planned)
    assert backend.trt.calls["inspect"] == [("JSON",)]
    [covered] = result.report.coverage
    assert [layer.name for layer in covered.linear if layer.is_int8] == ["layers.0.blocks.0.attn.qkv"]
    backend.trt.calls["unloadable"] = [()]
    with pytest.raises(EngineBuildError, match="listed no layers, and does not load what it has built"):
        compile_artifact(fresh, spec, planned, force=True)
    assert result.plan.is_file()


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Let Ctrl-C mean what it does in a terminal: a process started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible() as stopped:
        os.kill(os.getpid(), signal.SIGINT)
        assert not stopped()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_stops_the_builder_and_leaves_nothing_behind(fresh: ModelArtifact, make_backend: Make) -> None:
    backend, spec = make_backend("tensorrt11"), EngineSpec(onnx="model", timing_cache="")
    planned = replace(planned_engine(fresh, spec, None), backend=backend)

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        compile_artifact(fresh, spec, planned, progress=interrupt)
    assert not (fresh.path / "engines").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    found: list[bool] = []

    def work() -> None:
        with interruptible() as stopped:
            found.append(stopped())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_one_engine_of_a_name_is_written_at_a_time(fresh: ModelArtifact, make_backend: Make) -> None:
    from filelock import FileLock

    from swinv2_deploy.errors import ArtifactLocked

    backend, spec = make_backend("tensorrt11"), EngineSpec(onnx="model", timing_cache="")
    planned = replace(planned_engine(fresh, spec, None), backend=backend)
    (fresh.path / "engines").mkdir()
    with FileLock(fresh.path / "engines" / ".model.lock"), pytest.raises(ArtifactLocked):
        compile_artifact(fresh, spec, planned)


@real
def test_the_command_compiles_and_says_what_came_of_it(fresh: ModelArtifact) -> None:
    from typer.testing import CliRunner

    from swinv2_deploy.cli.app import app

    arguments = ["compile", "--model", str(fresh.path), "--min", "1x64x64", "--max", "1x64x64", "--target", "8.6", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["precision"] == "int8+fp16"
    assert content["report"]["targets"] == ["8.6"]
    assert content["report"]["profiles"][0]["coverage"]["int8_gemms"] == 17
    assert Path(content["engine"]).is_file()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    dry = CliRunner().invoke(app, [*arguments, "--dry-run", "--name", "other"])
    assert json.loads(dry.stdout)["dry_run"] is True
    assert "other.plan" not in files(fresh)
    both = CliRunner().invoke(app, [*arguments, "--timing-cache", "x", "--no-timing-cache"])
    assert both.exit_code == 2
    assert sys.modules["tensorrt_rtx"]
