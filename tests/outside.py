"""Packages outside this repository that add kinds, as Python finds them on its path."""

from pathlib import Path


def entry_point(folder: Path, group: str, line: str) -> None:
    """Have a package in `folder` name a kind of the group by a line `kind = module:Class`."""
    info = folder / "outside-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
