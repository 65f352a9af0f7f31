"""Pruning measured on held-out photographs: criteria, budgets, recovery, INT8 on top, and what it brings in time.

    python benchmarks/bench_prune.py --data clothing10 --out benchmarks/results/prune.json

``--data`` holds ``train``, which importance is measured and models are trained on, and ``val``, which is judged on. Without
``--model`` the bundled model is exported first. Rows that ``--out`` has already are not measured again, and a training goes on
where it was stopped. ``--plot FILE`` draws the curve from the rows there are.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rows import known_rows, source
from calibration.dataset import ImageFolder, open_split
from reference_model.model import SwinV2
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.pipeline import Recovery, judge, plan_pruning, prune_artifact, quantize_aware
from swinv2_deploy.prune.cost import parameter_costs
from swinv2_deploy.prune.cut import cut
from swinv2_deploy.prune.plan import make_plan
from swinv2_deploy.prune.spec import CRITERIA, PruneSpec, RecoverSpec
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QatSpec, QuantizeSpec
from swinv2_deploy.runtime import OnnxRunner
from swinv2_deploy.training.accuracy import answers
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.verify.latency import interleaved_latency

SHARES = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
CUT_TO_INT8 = 0.25
PARTS = ("criteria", "recovery", "int8", "latency", "schedule")


def main() -> None:
    """Measure what is asked for, print it, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train and val")
    parser.add_argument("--model", type=Path, help="artifact with onnx/model.onnx; default: the bundled model")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="shares of the parameters to remove")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the choice of images and of the training")
    parser.add_argument("--epochs", type=int, help="passes over the images, where not the default of prune and of quantize")
    parser.add_argument("--run", type=Path, default=Path("runs/bench-prune"), help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, help="JSON file to write, and to go on from")
    parser.add_argument("--plot", type=Path, help="picture to draw from --out, instead of measuring")
    arguments = parser.parse_args()
    if arguments.plot:
        draw(json.loads(arguments.out.read_text(encoding="utf-8")), arguments.plot)
        return
    if arguments.data is None:
        parser.error("--data is needed to measure")
    # The shift mask of -100 leaves denormal numbers behind the softmax, and processors compute with those many times slower.
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        Bench(arguments, Path(folder)).run()


class Bench:
    """All measurements, each a row."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.images, held = open_split(arguments.data)
        if held is None:
            raise SystemExit(f"{arguments.data} has no train and val; expected a folder with both.")
        self.held = held
        self.arguments = arguments
        self.folder = folder
        self.artifact = source(arguments.model, folder)
        self.shares = [float(text) for text in arguments.shares.split(",")]
        self.seeds = [int(text) for text in arguments.seeds.split(",")]
        facts = {
            "model": self.artifact.name,
            "weights_sha256": self.artifact.lineage.files["model.safetensors"],
            "training_images": len(self.images),
            "held_sha256": held.manifest().sha256,
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        }
        self.recovery_epochs = arguments.epochs or RecoverSpec().epochs
        self.int8_epochs = arguments.epochs or QatSpec().epochs
        self.facts = facts
        self.rows = {row["name"]: row for row in known_rows(arguments.out, facts)}

    def run(self) -> None:
        """Measure part by part."""
        for part in self.arguments.parts.split(","):
            for name, row in getattr(self, part)():
                self.rows[name] = row | {"name": name, "part": part}
                print(f"{name}: {summary(row)}", flush=True)
                if self.arguments.out:
                    content = self.facts | {"rows": list(self.rows.values())}
                    self.arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def criteria(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Top-1 after the cut alone, for every criterion, and the rank correlation with leaving heads out."""
        model = load_model(self.artifact)
        photographs = load(self.held, model, self.artifact)
        costs = parameter_costs(model.config)
        for seed in self.seeds:
            for criterion in CRITERIA:
                missing = [share for share in self.shares if f"{criterion} {share:g} seed {seed}" not in self.rows]
                if not missing:
                    continue
                check = 99 if seed == self.seeds[0] else 0
                spec = PruneSpec(measure="params", share=missing[0], criterion=criterion, seed=seed, check_heads=check)
                planned = plan_pruning(self.artifact, spec, self.images)
                if planned.importance is None:
                    raise SystemExit("A plan from a budget has scores.")
                for share in missing:
                    plan = make_plan(model.config, planned.importance.scores, costs, replace(spec, share=share))
                    right = answers(cut(model, plan), photographs, self.artifact.preprocessing) == photographs.classes
                    row: dict[str, Any] = {"criterion": criterion, "share": share, "seed": seed, "top1": float(right.mean())}
                    if planned.left_out:
                        row["rank_correlation"] = planned.left_out.rank_correlation
                    yield f"{criterion} {share:g} seed {seed}", row

    def recovery(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Before, after the cut and after recovery."""
        for seed in self.seeds:
            for share in self.shares:
                name = f"recovery {share:g} seed {seed}{after(self.recovery_epochs)}"
                if name in self.rows:
                    continue
                spec = PruneSpec(measure="params", share=share, seed=seed)
                trained = Recovery(
                    spec=RecoverSpec(epochs=self.recovery_epochs, seed=seed),
                    images=self.images,
                    teacher=self.artifact,
                    run=self.arguments.run / name.replace(" ", "-"),
                )
                planned = plan_pruning(self.artifact, spec, self.images)
                made = prune_artifact(
                    self.artifact, spec, planned, self.folder / name.replace(" ", "-"), recovery=trained, held=self.held
                )
                yield (
                    name,
                    {
                        "share": share,
                        "seed": seed,
                        "parameters": [planned.before.parameters, planned.after.parameters],
                        "macs": [planned.before.macs, planned.after.macs],
                        "heads": [planned.before.heads, planned.after.heads],
                        "forms": {row.form: asdict(row) for row in made.accuracy},
                        "epochs": self.recovery_epochs,
                    },
                )
                name = f"ptq {share:g} seed {seed}{after(self.recovery_epochs)}"
                if share == CUT_TO_INT8 and name not in self.rows:
                    ptq = quantize(made.artifact, int8(), self.images, self.folder / f"ptq-{seed}").artifact
                    yield name, self.judged(ptq, share, seed)

    def int8(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Cut, then trained with its rounding, in one run that learns from the unpruned model."""
        share = CUT_TO_INT8
        for seed in self.seeds:
            name = f"qat {share:g} seed {seed}{after(self.int8_epochs)}"
            if name in self.rows:
                continue
            spec = PruneSpec(measure="params", share=share, seed=seed)
            planned = plan_pruning(self.artifact, spec, self.images)
            cut_only = prune_artifact(self.artifact, spec, planned, self.folder / f"cut-{seed}").artifact
            qat = QatSpec(epochs=self.int8_epochs, learning_rate=RecoverSpec().rate(share), seed=seed)
            made = quantize_aware(
                cut_only,
                int8(),
                qat,
                self.images,
                self.folder / f"qat-{seed}",
                run=self.arguments.run / name.replace(" ", "-"),
                teacher=self.artifact,
            ).artifact
            yield name, self.judged(made, share, seed)

    def judged(self, made: ModelArtifact, share: float, seed: int) -> dict[str, Any]:
        """The INT8 file's top-1 beside that of the unpruned model in PyTorch."""
        verdict = judge(made, self.held, "int8")
        model = load_model(self.artifact)
        photographs = load(self.held, model, self.artifact)
        whole = float((answers(model, photographs, self.artifact.preprocessing) == photographs.classes).mean())
        return {
            "share": share,
            "seed": seed,
            "top1": verdict.top1,
            "lost": 100 * (whole - verdict.top1),
            "lost_to_own_float": verdict.lost,
            "sqnr_db": verdict.sqnr_db,
        }

    def schedule(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Divergence from the unpruned model after recovery at several rates and in steps, on photographs set aside."""
        for share in (0.25, 0.5):
            for rate, epochs, steps in ((1e-4, 1, 1), (2e-4, 1, 1), (4e-4, 1, 1), (1e-4, 3, 1), (2e-4, 3, 1), (2e-4, 2, 2)):
                name = f"schedule {share:g} rate {rate:g} epochs {epochs} steps {steps}"
                if name in self.rows:
                    continue
                spec = PruneSpec(measure="params", share=share)
                recovery = Recovery(
                    spec=RecoverSpec(epochs=epochs, learning_rate=rate, steps=steps),
                    images=self.images,
                    teacher=self.artifact,
                    run=self.arguments.run / name.replace(" ", "-"),
                )
                planned = plan_pruning(self.artifact, spec, self.images)
                made = prune_artifact(self.artifact, spec, planned, self.folder / name.replace(" ", "-"), recovery=recovery)
                aside = recovery.split(self.artifact.config, self.artifact.preprocessing)[1]
                pixels = torch.from_numpy(np.stack([self.artifact.preprocessing(image) for image in aside.images]))
                with torch.no_grad():
                    models = (load_model(self.artifact), load_model(made.artifact))
                    expected, found = (torch.log_softmax(model(pixels), dim=1) for model in models)
                yield (
                    name,
                    {
                        "share": share,
                        "rate": rate,
                        "epochs": epochs,
                        "steps": steps,
                        "divergence": float(
                            torch.nn.functional.kl_div(found, expected, log_target=True, reduction="batchmean")
                        ),
                        "agreement": float((expected.argmax(dim=1) == found.argmax(dim=1)).float().mean()),
                    },
                )

    def latency(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Time of pruned graphs beside the whole one, in turns, with how much of the MACs went."""
        cases = [("params", share) for share in self.shares] + [
            ("heads", 0.25),
            ("heads", 0.5),
            ("macs", 0.3),
            ("latency", 0.3),
        ]
        height, width = self.artifact.preprocessing.size
        for measure, share in cases:
            for multiple in (8, 64) if measure == "params" else (8,):
                name = f"latency {measure} {share:g} multiple {multiple}"
                if name in self.rows:
                    continue
                spec = PruneSpec(measure=measure, share=share, multiple=multiple)  # type: ignore[arg-type]  # of these
                planned = plan_pruning(self.artifact, spec, self.images)
                made = prune_artifact(self.artifact, spec, planned, self.folder / name.replace(" ", "-")).artifact
                row: dict[str, Any] = {
                    "measure": measure,
                    "share": share,
                    "multiple": multiple,
                    "parameters_removed": 1 - planned.after.parameters / planned.before.parameters,
                    "macs_removed": 1 - planned.after.macs / planned.before.macs,
                    "heads_removed": planned.before.heads - planned.after.heads,
                }
                runners = {
                    form: OnnxRunner(artifact.file("onnx/model.onnx"))
                    for form, artifact in (("whole", self.artifact), ("pruned", made))
                }
                for batch in (1, 8):
                    images = np.random.default_rng(0).standard_normal((batch, 3, height, width)).astype(np.float32)
                    found = interleaved_latency(runners, "whole", images, 8.0)["pruned"]
                    row[f"speedup_batch_{batch}"] = found.speedup
                    row[f"spread_batch_{batch}"] = list(found.spread)
                    row[f"time_removed_batch_{batch}"] = 1 - 1 / found.speedup
                yield name, row


def after(epochs: int) -> str:
    """End of a row's name: nothing after one epoch."""
    return "" if epochs == 1 else f" epochs {epochs}"


def int8() -> QuantizeSpec:
    """How INT8 forms are calibrated."""
    return QuantizeSpec(calibrator="percentile", images=256, unsigned="never")


def summary(row: dict[str, Any]) -> str:
    """One line of a row."""
    if "forms" in row:
        return ", ".join(f"{form} {100 * found['top1']:.2f} %" for form, found in row["forms"].items())
    return ", ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float))


def load(folder: ImageFolder, model: SwinV2, artifact: ModelArtifact) -> TrainingImages:
    """Photographs with the model's numbers of classes."""
    classes = [model.config.labels.index(name.split("/")[0]) for name in folder.names]
    return TrainingImages(list(folder.paths), classes, 2 * max(artifact.preprocessing.size))


def draw(content: dict[str, Any], path: Path) -> None:
    """Top-1 over the share removed: every criterion after the cut, and recovery, with the range over seeds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines: dict[str, dict[float, list[float]]] = {}
    whole = 0.0
    for row in content["rows"]:
        if row["part"] == "criteria":
            lines.setdefault(f"{row['criterion']}, cut only", {}).setdefault(row["share"], []).append(100 * row["top1"])
        elif row["part"] == "recovery" and "forms" in row:
            line = f"taylor, {row['epochs']} epoch{'s' * (row['epochs'] > 1)} of recovery"
            lines.setdefault(line, {}).setdefault(row["share"], []).append(100 * row["forms"]["recovered"]["top1"])
            whole = 100 * row["forms"]["before"]["top1"]
    colors = {
        "taylor, 1 epoch of recovery": "#86c49a",
        "taylor, 3 epochs of recovery": "#15803d",
        "taylor": "#1d4ed8",
        "activation": "#f59e0b",
        "magnitude": "#9333ea",
        "random": "#6b7280",
    }
    style = {"svg.hashsalt": "swinv2-deploy", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=(7.2, 4.2))
        figure.subplots_adjust(left=0.09, right=0.98, bottom=0.12, top=0.95)
        panel = figure.subplots()
        for name, points in lines.items():
            color = colors.get(name, colors.get(name.split(",")[0], "#000000"))
            shares = sorted(points)
            middle = [float(np.mean(points[share])) for share in shares]
            percent = [100 * share for share in shares]
            panel.plot(percent, middle, marker="o", markersize=3, color=color, label=name)
            panel.fill_between(
                percent, [min(points[s]) for s in shares], [max(points[s]) for s in shares], color=color, alpha=0.15
            )
        panel.axhline(whole, color="#374151", linewidth=0.8, linestyle="--", label="unpruned")
        panel.set_xlabel("parameters removed, %")
        panel.set_ylabel("top-1 on held-out photographs, %")
        panel.set_ylim(30, 75)
        panel.legend(frameon=False, fontsize=8)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


if __name__ == "__main__":
    main()
