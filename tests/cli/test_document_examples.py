"""Modules that documents show are complete: the commands beside them run."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, SHORT

BLOCK = re.compile(r"```(python|bash)\n(.*?)```", re.DOTALL)


def example(document):
    """Return name and text of a document's module, and the command that uses it."""
    blocks = BLOCK.findall((ROOT / document).read_text())
    (text,) = [code for kind, code in blocks if kind == "python" and code[:2] == "# "]
    name = re.match(r"# (\w+)\.py\n", text)[1]
    lines = [
        line for kind, code in blocks if kind == "bash" for line in code.split("\n")
    ]
    (command,) = [line for line in lines if f" {name}." in line]
    return name, text, command


@pytest.mark.parametrize(
    "document, folder",
    [("CONTRIBUTING.md", "uci"), ("docs/learned_optimizers.md", None)],
)
def test_a_module_that_is_shown_is_complete(
    document, folder, cli, tmp_path, monkeypatch
):
    data = Path(os.environ.get("LIGHTNING_ECD_DATA", "data"))
    if folder and not (data / folder).is_dir():
        pytest.skip(f"{data / folder} is missing: set LIGHTNING_ECD_DATA")
    name, text, command = example(document)
    Path(tmp_path, f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    place, program, *words = shlex.split(command)
    assert (place, program) == ("PYTHONPATH=.", "lightning-ecd")
    words = [str(ROOT / word) if word[:8] == "configs/" else word for word in words]
    try:
        result = cli(*words, *SHORT)
    finally:
        sys.modules.pop(name, None)
    assert (result.code, result.err) == (0, "")
    assert "logs: logs/" in result.out
