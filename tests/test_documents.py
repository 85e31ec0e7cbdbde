"""What README, docs and CITATION.cff point to is there."""

import re
from pathlib import Path

import pytest
import yaml

from lightning_ecd import __version__

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md"),
    *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))),
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document):
    file = ROOT / document
    targets = re.findall(r"\]\(([^)]+)\)", file.read_text())
    for target in targets:
        path, _, anchor = target.partition("#")
        if path.startswith("https:"):
            continue
        aim = file.parent / path if path else file
        assert aim.exists(), target
        assert not anchor or anchor in anchors(aim.read_text()), target


def anchors(text):
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", ["README.md", "docs/numbers.md"])
def test_configurations_that_are_named_exist(document):
    present = [f"/{file}" for file in map(str, ROOT.glob("configs/*/*.yaml"))]
    named = set(re.findall(r"[\w/]+\.yaml", (ROOT / document).read_text()))
    named -= {"logs/bbi_digits/version_0/config.yaml", "config.yaml"}  # of a run
    assert named
    for name in named:
        assert any(file.endswith(f"/{name}") for file in present), name


def test_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
