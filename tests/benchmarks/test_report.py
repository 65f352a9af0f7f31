"""Tables and plot show every peer, and what went wrong with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.__main__ import parser, settings
from benchmarks.peers.machine import cpu_kind
from benchmarks.peers.measure import quiet_peak
from benchmarks.peers.peers import BASELINE
from benchmarks.peers.plot import draw
from benchmarks.peers.report import table


@pytest.fixture
def result() -> dict[str, Any]:
    """A finished peer, a failed one, and one whose preparation was disturbed."""
    row = {
        "peer": "timm",
        "label": "timm, eager",
        "precision": "fp32",
        "error": "",
        "file_bytes": 3 * 2**20,
        "nodes": 12,
        "export_seconds": 4.25,
        "export_foreign": 0.0,
        "export_memory": 5 * 2**20,
        "peak_memory": 6 * 2**20,
        "drift": {"cosine": 0.99, "max_abs": 0.5},
        "speed": {"low": 1.5, "median": 2.0, "high": 2.5, "of_minima": 2.25, "rounds": 3},
        "blocks": {"timed": 5, "disturbed": 2, "rounds_given_up": 0},
        "share_of_peak": 0.625,
    }
    failed = {"peer": "ours-x", "label": "ours", "precision": "int8", "error": "Fail: a | b\nc"}
    disturbed = row | {"label": "disturbed", "export_foreign": 0.4}
    run = {
        "model": "tiny-256",
        "batch": 8,
        "operations": {"linear": 3 * 10**9, "other": 10**9},
        "gemm": {"peaks": {"fp32": 2e11, "int8": 6e11}, "foreign": 0.0},
        "rows": [row, failed, disturbed],
    }
    return {
        "machine": {"processor": "CPU X", "instructions": ["avx2"], "versions": {"onnxruntime": "1.2"}},
        "settings": {"threads": 2, "flush": True, "limit": 0.08, "rounds": 3},
        "runs": [run],
    }


def test_every_peer_has_a_row_with_its_numbers_or_its_error(result: dict[str, Any]) -> None:
    """An error cannot break the table, and a disturbed preparation is marked."""
    text = table(result)

    assert "| timm, eager | 2.00 (1.50 to 2.50) | 2.25 | 0.99000 | 5.0e-01 | 3 | 12 | 4.2 | 5 | 6 | 62% |" in text
    assert "| ours | failed: Fail: a / b c |" in text
    assert "| disturbed | 2.00 (1.50 to 2.50) | 2.25 | 0.99000 | 5.0e-01 | 3 | 12 | ~4.2 |" in text
    assert "of 10 blocks 4 were disturbed and repeated, 0 were given up" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"\|", line)) for line in rows}) == 1


def test_a_disturbed_peak_is_marked(result: dict[str, Any]) -> None:
    """A share of a peak that was measured on a busy machine may exceed all bounds."""
    result["runs"][0]["gemm"]["foreign"] = 0.2

    assert "| 6 | ~62% |" in table(result)


def test_the_peak_is_measured_until_it_is_quiet() -> None:
    """And if it never is, the least disturbed one is taken."""
    quiet = iter({"foreign": share} for share in (0.5, 0.05, 0.0))
    busy = iter({"foreign": share} for share in (0.5, 0.4, 0.2, 0.3, 0.9, 0.0))

    assert quiet_peak(lambda: next(quiet), 0.08) == {"foreign": 0.05}
    assert quiet_peak(lambda: next(busy), 0.08) == {"foreign": 0.2}
    assert quiet_peak(lambda: {"error": "no memory"}, 0.08) == {"error": "no memory"}


def test_a_run_without_guard_says_so(result: dict[str, Any]) -> None:
    """Nobody quotes a trial by mistake."""
    assert "guard was off" not in table(result)
    result["settings"]["limit"] = 1.0
    assert "guard was off" in table(result)


def test_the_plot_shows_every_peer(result: dict[str, Any], tmp_path: Path) -> None:
    """The failed one as well; the same result gives the same file."""
    draw(result, tmp_path / "a.svg")
    draw(result, tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text("utf-8")

    assert all(word in text for word in ("timm, eager", "failed", "tiny-256, batch 8", "2.00"))
    assert text == (tmp_path / "b.svg").read_text("utf-8")


@pytest.mark.parametrize(
    ("processor", "instructions", "expected"),
    [
        ("AMD EPYC", ["avx2"], "amd-epyc-avx2"),
        ("Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", ["avx2", "amx_int8"], "intel-xeon-platinum-8488c-amxint8"),
        ("AMD EPYC 7R13 48-Core Processor", ["avx2"], "amd-epyc-7r13-avx2"),
    ],
)
def test_a_kind_of_processor_names_its_file(processor: str, instructions: list[str], expected: str) -> None:
    """Readable, and the same on every machine of the kind."""
    assert cpu_kind({"processor": processor, "instructions": instructions}) == expected


def test_the_baseline_is_always_measured() -> None:
    """A ratio needs something to compare with, whatever peers were asked for."""
    asked = settings(parser().parse_args(["--peers", "timm-ort", "--batches", "1,4", "--quick"]))

    assert asked.peers == (BASELINE, "timm-ort")
    assert (asked.batches, asked.rounds, asked.limit) == ((1, 4), 3, 1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "huge"], r"unknown \['huge'\]; expected some of tiny-256, base-384"),
        (["--batches", "0"], "'0' is no list of batch sizes"),
        (["--rounds", "0"], "0 is too small; expected at least 1"),
    ],
)
def test_wrong_options_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what was expected."""
    with pytest.raises(SystemExit):
        parser().parse_args(words)

    assert re.search(message, capsys.readouterr().err)
