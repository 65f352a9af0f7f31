"""``swinv2-deploy verify``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from swinv2_deploy.cli.console import Output, reported_errors, warn
from swinv2_deploy.cli.options import ARTIFACTS, AllowUntrained, Artifact, Data, Json, Quiet, Seed, Verbose
from swinv2_deploy.cli.progress import progress_of
from swinv2_deploy.errors import ArtifactError, ToleranceExceeded

if TYPE_CHECKING:
    from swinv2_deploy.artifacts import ModelArtifact
    from swinv2_deploy.verify import DriftReport, VerifySpec

TOLERANCES = Path("verify.toml")
"""Limits that are taken from the folder the command runs in."""
UNTRAINED_LIMIT = 16
"""Bundled photographs taken by default where there is no accuracy to tell."""


def verify_command(
    model: Artifact = None,
    data: Data = None,
    candidate: Annotated[
        list[str] | None, typer.Option("--candidate", help="ONNX file to verify, such as model_int8; repeatable. Default: all.")
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Other artifact, such as a pruned one, to compare with the same reference; repeatable."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Number of images, evenly over the classes. Default: all.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images run together.")] = 8,
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="Height x width in px to sweep: 256x256,320x288. Default: from the range.")
    ] = None,
    tolerances: Annotated[
        Path | None, typer.Option("--tolerances", help="TOML file with limits. Default: verify.toml here, if there is one.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads. Default: each runtime's choice.")
    ] = None,
    runner: Annotated[
        str,
        typer.Option(
            "--runner",
            help="Libraries that run every file: onnxruntime, openvino, tensorrt (every engine); several with commas.",
        ),
    ] = "onnxruntime",
    openvino_precision: Annotated[
        str, typer.Option("--openvino-precision", help="f32 or bf16: what OpenVINO computes in where no integers are.")
    ] = "f32",
    integer_products: Annotated[
        str,
        typer.Option("--integer-products", help="exact, or fast: as the libraries do by themselves, which may saturate."),
    ] = "exact",
    provider: Annotated[str, typer.Option("--provider", help="cpu, cuda or tensorrt: where ONNX Runtime computes.")] = "cpu",
    exclude_overlap: Annotated[
        bool, typer.Option("--exclude-overlap", help="Leave out images the artifact was calibrated or trained on.")
    ] = False,
    ignore_labels: Annotated[bool, typer.Option("--ignore-labels", help="Judge agreement alone, not accuracy.")] = False,
    allow_untrained: AllowUntrained = False,
    layer_images: Annotated[
        int,
        typer.Option("--layer-images", min=0, help="Photographs that drift of every block is measured on; 0 leaves it out."),
    ] = 8,
    preprocessing_images: Annotated[
        int,
        typer.Option(
            "--preprocessing-images", min=0, help="Photographs to tell on what other resizing or channel orders cost; 0: none."
        ),
    ] = 0,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the block, and the part of it, that makes a file fail.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="File for the report, .json or .html. Default: both in reports/<time>/ of the artifact."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="File for the gates as JUnit XML, which CI systems show.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", help="Folder that keeps what was compared: a run that was killed goes on there, and processes share it."
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Images that are compared and kept together.")] = 256,
    engine: Annotated[
        str, typer.Option("--engine", help="local, or ray: workers of a Ray cluster compare the images; needs --threads.")
    ] = "local",
    latency_seconds: Annotated[
        float, typer.Option("--latency-seconds", min=0, help="Time for comparing speeds; 0 leaves that out.")
    ] = 3.0,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare every ONNX file of an artifact with its FP32 weights: drift, accuracy, sizes, batches, speed.

    A folder with ``train`` and ``val`` is judged on ``val``.

    Ends with exit code 3 when a file drifted beyond tolerance.
    """
    output = Output(json=json, quiet=quiet, verbose=verbose)
    with reported_errors(output):
        from swinv2_deploy.artifacts import newest_artifact, read_artifact

        artifact = newest_artifact(ARTIFACTS) if model is None else read_artifact(model)
        if model is None:
            output.say(f"No --model was given: taking the newest artifact, {artifact.path}")
        from calibration.dataset import split_of
        from calibration.samples import sample_folder
        from swinv2_deploy.verify import DEFAULTS, VerifySpec, check_sharing, load_tolerances, parse_back_ends, parse_sizes

        if data is None:
            folder = sample_folder("verify")
            output.say(f"No --data was given: taking the bundled photographs, {folder}")
        elif (split := split_of(data)) is not None:
            _, folder = split
            output.say(f"{data} has train and val: judging on {folder}")
        else:
            folder = data
        if tolerances is None and TOLERANCES.is_file():
            tolerances = TOLERANCES
            output.say(f"No --tolerances was given: taking the limits in {TOLERANCES}")
        trained = artifact.lineage.weights.trained
        if data is None and limit is None and not trained:
            limit = UNTRAINED_LIMIT
            output.say(
                f"The weights are untrained: {limit} photographs tell whether the files compute the same (--limit for more)"
            )
        spec = VerifySpec(
            data=folder,
            candidates=tuple(candidate or ()),
            limit=limit,
            batch_size=batch_size,
            sizes=parse_sizes(sizes) if sizes else (),
            tolerances=load_tolerances(tolerances) if tolerances else DEFAULTS,
            labels="ignore" if ignore_labels else "match" if trained and data is not None else "auto",
            threads=threads,
            back_ends=parse_back_ends(runner),
            openvino_precision=openvino_precision,  # type: ignore[arg-type]  # checked by the spec
            integer_products=integer_products,  # type: ignore[arg-type]  # checked by the spec
            provider=provider,  # type: ignore[arg-type]  # checked by the spec
            exclude_overlap=exclude_overlap,
            allow_untrained=allow_untrained,
            layer_images=layer_images,
            preprocessing_images=preprocessing_images,
            latency_seconds=latency_seconds,
            shard_size=shard_size,
            engine=engine,  # type: ignore[arg-type]  # checked by the spec
            seed=seed,
        )
        beside = tuple(read_artifact(path) for path in others or ())
        rank = check_sharing(spec, run)
        if rank > 0 and run is not None:
            _help(artifact, spec, beside, run, rank, output)
            return
        _run(
            artifact,
            spec,
            beside,
            report,
            junit,
            output,
            bisect,
            "" if model is None else f" --model {shlex.quote(str(model))}",
            run,
        )


def _run(
    artifact: ModelArtifact,
    spec: VerifySpec,
    others: tuple[ModelArtifact, ...],
    place: Path | None,
    junit: Path | None,
    output: Output,
    bisects: bool,
    model: str,
    run: Path | None,
) -> None:
    from swinv2_deploy.verify import verify

    with progress_of(output) as progress:
        result = verify(artifact, spec, progress, others, run)
    if bisects and not result.passed:
        result = _bisected(result, artifact, spec, output)
    saved, problem = _save(result, artifact, place)
    if junit is not None:
        _write_junit(result, junit)
    if output.quiet and not output.json:
        sys.stdout.write("\n".join([*result.failures, result.verdict]) + "\n")
    _show(result, output.console)
    if saved is not None:
        page = saved.with_name("report.html")
        output.say(f"Report: {page if place is None and page.is_file() else saved}")
    output.say(_next(artifact, spec, result, model))
    if output.json:
        output.result(result.to_dict() | {"report": None if saved is None else str(saved)})
    if problem is not None:
        warn(str(problem))
    try:
        result.require_passed()
    except ToleranceExceeded as error:
        raise typer.Exit(error.exit_code) from error
    # The verdict was shown; a report that was asked for by name and is missing still fails the command.
    if problem is not None and place is not None:
        raise typer.Exit(problem.exit_code)


def _help(
    artifact: ModelArtifact, spec: VerifySpec, others: tuple[ModelArtifact, ...], run: Path, rank: int, output: Output
) -> None:
    """A further process of a launcher: compares, and leaves the verdict to the first."""
    from swinv2_deploy.verify import share

    with progress_of(output) as progress:
        count = share(artifact, spec, run, progress, others)
    output.say(f"Process {rank} compared {count} shards; process 0 judges.")
    if output.json:
        output.result({"rank": rank, "shards": count})


def _bisected(result: DriftReport, artifact: ModelArtifact, spec: VerifySpec, output: Output) -> DriftReport:
    """The report with what makes each failing file fail; where that cannot be found, a warning says why."""
    from swinv2_deploy.errors import UnsupportedModelError
    from swinv2_deploy.verify import find_culprit

    candidates = []
    for candidate in result.candidates:
        found = None
        if not candidate.passed and not candidate.owner:
            try:
                with output.working(f"Looking for what makes {candidate.title} fail"):
                    found = find_culprit(artifact, spec, result, candidate)
            except UnsupportedModelError as error:
                warn(str(error))
        candidates.append(replace(candidate, bisection=found))
    return replace(result, candidates=tuple(candidates))


def _save(result: DriftReport, artifact: ModelArtifact, place: Path | None) -> tuple[Path | None, ArtifactError | None]:
    """Keep the report; a verdict is never lost because the disk is full or read-only."""
    from swinv2_deploy.verify.page import report_page

    wanted = place is None or place.suffix == ".html"
    page = report_page(result, artifact) if wanted else ""
    try:
        return (result.save(artifact.path, page) if place is None else result.write(place, page)), None
    except ArtifactError as error:
        return None, error


def _write_junit(result: DriftReport, path: Path) -> None:
    from swinv2_deploy.atomic import replace_file

    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        replace_file(path.absolute(), result.to_junit().encode(), mode=0o644)
    except OSError as error:
        raise ArtifactError(f"The gates cannot be written to {path} ({error.strerror}); choose another place.") from error


def _show(result: DriftReport, console: Console) -> None:
    from swinv2_deploy.verify.terminal import (
        bisection_lines,
        drift_tables,
        flip_lines,
        layer_lines,
        notes,
        preprocessing_lines,
        verdict_lines,
    )

    for table in drift_tables(result, console.width):
        console.print(table)
    for lines in (notes, preprocessing_lines, layer_lines, flip_lines, bisection_lines, verdict_lines):
        for line in lines(result):
            console.print(line)


def _next(artifact: ModelArtifact, spec: VerifySpec, result: DriftReport, model: str) -> str:
    from calibration.samples import sample_folder
    from swinv2_deploy.runtime.onnx_file import read_facts
    from swinv2_deploy.verify.terminal import best_file

    if not result.passed:
        return "Next: swinv2-deploy quantize --help (other calibrators and policies), or 'verify --help' for other tolerances"
    if not any("_int8" in name for name in artifact.onnx_files):
        return f"Next: swinv2-deploy quantize{model}"
    allow = " --allow-untrained" if spec.allow_untrained else ""
    if spec.data == sample_folder("verify"):
        return f"Next: swinv2-deploy verify{model}{allow} --data YOUR_PHOTOS"
    best = best_file(result)
    facts = read_facts(best) if best.suffix == ".onnx" else None
    free = facts is not None and facts.takes == "pixel_values" and not facts.resolutions.static
    return f"Deploy: {best}" + f"\nFaster where only one size is run: swinv2-deploy pin{model} --onnx {best.stem}" * free
