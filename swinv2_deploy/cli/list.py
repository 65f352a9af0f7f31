"""``swinv2-deploy list``: the published models and the artifacts of this folder."""

from __future__ import annotations

from rich.table import Column, Table

from swinv2_deploy.cli.console import Output, reported_errors, warn
from swinv2_deploy.cli.options import ARTIFACTS, Json


def list_command(json: Json = False) -> None:
    """List the models that 'export --size --res --window' can name, and the artifacts in ./artifacts."""
    output = Output(json=json)
    with reported_errors(output):
        from reference_model.variants import VARIANTS
        from swinv2_deploy.artifacts import read_artifact
        from swinv2_deploy.errors import ArtifactError

        artifacts = []
        for path in sorted(ARTIFACTS.glob("[!.]*/lineage.json")):
            try:
                artifacts.append(read_artifact(path.parent))
            except ArtifactError as error:
                warn(str(error))
        table = Table("size", "res", "window", "trained on", Column("Hugging Face hub id", overflow="fold"), title="Models")
        for variant in VARIANTS.values():
            table.add_row(variant.size, str(variant.resolution), variant.window, variant.pretraining, variant.hub_id or "-")
        made = Table(
            Column("artifact", overflow="fold"), "made by", "weights", "ONNX files", title=f"Artifacts in ./{ARTIFACTS}"
        )
        for artifact in artifacts:
            lineage = artifact.lineage
            made.add_row(artifact.name, lineage.stage, lineage.weights.kind, ", ".join(artifact.onnx_files))
        if not json:
            output.console.print(table)
            output.console.print(
                made if artifacts else f"No artifacts in ./{ARTIFACTS} yet: 'swinv2-deploy export' makes the first."
            )
        output.result(
            {
                "models": [
                    {"name": v.name, "size": v.size, "res": v.resolution, "window": v.window, "hub_id": v.hub_id}
                    for v in VARIANTS.values()
                ],
                "artifacts": [{"path": str(a.path), "stage": a.lineage.stage, "onnx": sorted(a.onnx_files)} for a in artifacts],
            }
        )
