"""What the documents say is there is there, and what is there is documented."""

import re
import subprocess
from pathlib import Path

import pytest

from store.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


_LISTED = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]


def tracked() -> list[Path]:
    listing = subprocess.run(_LISTED, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_in_the_readme_with_its_default(name: str) -> None:
    row = next((line for line in (ROOT / "README.md").read_text().splitlines() if f"| `{name.upper()}`" in line), None)
    assert row is not None, f"README.md's table of settings lacks {name.upper()}"
    default = Settings.model_fields[name].default
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    if Settings.model_fields[name].default_factory is None:
        assert f"| `{shown}` |" in row or (shown == "" and "|  |" in row), f"README.md gives another default: {row}"


def anchors(document: Path) -> set[str]:
    """Return what GitHub calls a document's headings in links."""
    headings = HEADING.findall(CODE.sub("", document.read_text()))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in LINK.findall(document.read_text()):
        if "://" not in target:
            found = document.parent / target if target else document
            assert found.exists(), f"{document.name} links to {target}"
            assert not anchor or anchor in anchors(found), f"{document.name} links to {target}#{anchor}"


@pytest.mark.parametrize("pattern", [r"(?<![\w.])/(home|Users|mnt|workspace)/\w", r"https?://\S+/simple/?\W"])
def test_no_folder_of_somebody_and_no_package_index_is_tracked(pattern: str) -> None:
    for path in tracked():
        if path.suffix not in {".npz", ".png", ".svg"}:
            found = re.search(pattern, path.read_text(encoding="utf-8", errors="ignore"))
            assert not found, f"{path.relative_to(ROOT)} names {found[0]}"
