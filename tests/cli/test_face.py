"""What the face answers by itself, and what it lists."""

import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from lightning_ecd import __version__
from lightning_ecd.__main__ import COMMANDS
from lightning_ecd.optimizers import REGISTRY, Traits


def python(code):
    """Run code in a fresh interpreter; return code, output, errors."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], []])
def test_the_face_answers_without_torch(arguments):
    code, out, err = python(
        "import sys; from lightning_ecd.__main__ import main\n"
        f"main({arguments})\n"
        "heavy = {'torch', 'numpy', 'pytorch_lightning', 'jsonargparse', 'rich'}\n"
        "print(heavy & set(sys.modules))"
    )
    assert (code, err) == (0, "")
    assert out.endswith("set()\n")


def test_an_unknown_command_is_one_line_without_torch():
    code, out, err = python(
        "import sys; from lightning_ecd.__main__ import main\n"
        "try:\n    main(['fitt'])\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    assert (code, out) == (2, "False\n")
    assert err.count("\n") == 1
    assert "'fitt'" in err and "fit, validate" in err


def test_help_lists_every_command(cli):
    result = cli("--help")
    assert result.code == 0
    rows = re.findall(r"^  ([a-z]+) {2,}\S", result.out, re.M)
    assert rows == list(COMMANDS)
    assert {"fit", "validate", "test", "predict", "optimizers"} <= set(rows)


def test_version(cli):
    assert cli("--version").out == f"lightning-ecd {__version__}\n"


# -- optimizers --------------------------------------------------------------------


def test_the_table_names_every_optimizer(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = cli("optimizers").out
    assert all(re.search(rf"\b{name}\b", out) for name in REGISTRY)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("BBI", ["BBI"]),
        ("bbi", ["BBI"]),
        ("adam*", ["Adam", "AdamW"]),
        ("energy*", ["BBI", "ECDSep", "ECDSepLeapfrog", "ECDq1"]),
    ],
)
def test_a_wildcard_matches_name_or_family(pattern, names, cli):
    rows = json.loads(cli("optimizers", pattern, "--json").out)
    assert [row["name"] for row in rows] == names


def test_json_holds_every_trait_and_range(cli):
    rows = {row["name"]: row for row in json.loads(cli("optimizers", "--json").out)}
    assert set(rows) == set(REGISTRY)
    for name, row in rows.items():
        traits = REGISTRY[name].traits
        for field in fields(Traits):
            assert row[field.name] == getattr(traits, field.name)
        assert row["ranges"], f"{name} has nothing to search"
    assert rows["BBI"]["needs_loss"] is True and rows["SGD"]["needs_loss"] is False
    assert rows["BBI"]["class"].startswith("lightning_ecd.optimizers.")


def test_an_optimizer_that_is_not_there(cli):
    result = cli("optimizers", "Lion")
    assert result.code == 2
    assert "'Lion'" in result.err and "BBI" in result.err
