"""What the documents promise is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)


def broken_links(path: Path) -> list[str]:
    """Relative links of a Markdown file that lead nowhere, code blocks aside."""
    prose = FENCE.sub("", path.read_text("utf-8"))
    targets = [link.split("#")[0] for link in LINK.findall(prose) if not re.match(r"[a-z]+:", link)]
    return [target for target in targets if target and not (path.parent / target).exists()]


def test_relative_links_resolve(text_files: list[Path], root: Path) -> None:
    """Every relative link of every Markdown file names a file."""
    broken = {
        str(path.relative_to(root)): links for path in text_files if path.suffix == ".md" and (links := broken_links(path))
    }

    assert {} == broken


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    """The test above can fail, and it ignores code, anchors and the web."""
    page = tmp_path / "page.md"
    page.write_text("[a](gone.md#top) [b](page.md) [c](#here) [d](https://example.org)\n```\n[e](code.md)\n```\n", "utf-8")

    assert ["gone.md"] == broken_links(page)


def test_every_release_tells_its_numerics(root: Path) -> None:
    """Each version of the changelog has a Numerics section: what moved an output bit, or that nothing did."""
    releases = re.split(r"^## ", (root / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)[1:]

    assert [] == [release.splitlines()[0] for release in releases if "### Numerics" not in release]


def test_decisions_are_complete(root: Path) -> None:
    """Each decision record has its four parts and is named for its number."""
    records = sorted((root / "docs/adr").glob("*.md"))
    missing = {
        record.name: part
        for record in records
        for part in ("## Status", "## Context", "## Decision", "## Consequences")
        if part not in record.read_text("utf-8")
    }

    assert {} == missing
    assert [] == [record.name for record in records if not record.read_text("utf-8").startswith(f"# {int(record.name[:4])}. ")]


def test_code_map_names_every_room(root: Path) -> None:
    """docs/architecture.md says what each room of the trunk is for."""
    text = (root / "docs/architecture.md").read_text("utf-8")
    rooms = [path.parent.name for path in (root / "swinv2_deploy").glob("*/__init__.py")]

    assert [] == [room for room in rooms if f"`{room}" not in text]


@pytest.mark.parametrize("name", ["help", "install", "demo", "test", "check", "bench", "golden", "clean"])
def test_makefile_explains_its_verbs(name: str, root: Path) -> None:
    """`make help` shows every verb with a sentence."""
    assert re.search(rf"^{name}:.*## \w+", (root / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
