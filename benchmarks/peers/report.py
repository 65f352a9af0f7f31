"""The result as Markdown tables."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.guard import LIMIT

MIB = 2**20
HEADER = (
    "| peer | x timm eager (quartiles) | of minima | cosine | max abs | file, MiB | nodes | export, s | export, MiB | run, MiB "
    "| of peak |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


def table(result: dict[str, Any]) -> str:
    """One table for each model and batch, with what it was measured on."""
    machine, settings = result["machine"], result["settings"]
    lines = [
        f"{machine['processor']} ({', '.join(machine['instructions'])}), {settings['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + ".",
        "Denormal numbers count as zero in every runtime."
        if settings["flush"]
        else "Denormal numbers are kept in every runtime.",
    ]
    if settings["limit"] >= 1:
        lines.append(
            "**The guard was off: other processes may have disturbed every block. These times are for trying out only.**"
        )
    for run in result["runs"]:
        lines += ["", f"**{run['model']}, batch {run['batch']}** ({_rounds(run, settings)})", "", *HEADER]
        lines += [_row(row, run["gemm"]) for row in run["rows"]]
        peaks = run["gemm"].get("peaks")
        if peaks:
            giga = [sum(run["operations"].values()) / 1e9, *(peaks[name] / 1e9 for name in ("fp32", "int8"))]
            lines += ["", "Matrix products: {:.1f} G operations; peak {:.0f} G/s in FP32, {:.0f} G/s in INT8.".format(*giga)]
        else:
            lines += ["", f"Peak of matrix products not measured: {run['gemm']['error']}"]
    return "\n".join(lines)


def _rounds(run: dict[str, Any], settings: dict[str, Any]) -> str:
    blocks = [row["blocks"] for row in run["rows"] if "blocks" in row]
    timed, disturbed, given_up = (sum(block[name] for block in blocks) for name in ("timed", "disturbed", "rounds_given_up"))
    return f"{settings['rounds']} rounds; of {timed} blocks {disturbed} were disturbed and repeated, {given_up} were given up"


def _row(row: dict[str, Any], gemm: dict[str, Any]) -> str:
    speed, drift = row.get("speed"), row.get("drift")
    cells = [
        row["label"],
        f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})" if speed else "",
        f"{speed['of_minima']:.2f}" if speed else "",
        f"{drift['cosine']:.5f}" if drift else "",
        f"{drift['max_abs']:.1e}" if drift else "",
        _mib(row.get("file_bytes")),
        _number(row.get("nodes"), "d"),
        _number(row.get("export_seconds"), ".1f", row.get("export_foreign", 0.0)),
        _mib(row.get("export_memory")),
        _mib(row.get("peak_memory")),
        _number(row.get("share_of_peak"), ".0%", gemm.get("foreign", 0.0)),
    ]
    if row["error"]:
        cells[1] = "failed: " + " ".join(row["error"].replace("|", "/").split())
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, form: str, foreign: float = 0.0) -> str:
    """A number, marked where others disturbed its measurement; empty when there is none."""
    return "" if value is None else ("~" if foreign > LIMIT else "") + format(value, form)


def _mib(value: int | None) -> str:
    return "" if value is None else f"{value / MIB:.0f}"
