"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.preparation import LIBRARIES

INSTRUCTIONS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""Instruction sets that decide how fast matrix products are, weakest first for each family of processors."""


def machine_facts() -> dict[str, Any]:
    """Processor, its instruction sets, cores, memory and library versions."""
    described = _cpuinfo()
    flags = set((described.get("flags") or described.get("Features") or "").split())
    return {
        "processor": described.get("model name") or platform.processor() or platform.machine(),
        "family": described.get("cpu family", ""),
        "model": described.get("model", ""),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }


def cpu_kind(facts: dict[str, Any]) -> str:
    """Short name of a kind of processor for a file's name: ``amd-epyc-avx2``."""
    words = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*|\b\d+-core\b", " ", facts["processor"].lower())
    strongest = facts["instructions"][-1:] or [platform.machine()]
    return "-".join(re.findall(r"[a-z0-9]+", f"{words} {strongest[0].replace('_', '')}"))


def _cpuinfo() -> dict[str, str]:
    """The first processor in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
