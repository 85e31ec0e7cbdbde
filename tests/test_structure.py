"""The direction of imports, read from the sources without running them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("lightning_ecd", "datamodules", "modules", "tune")
FILES = sorted(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}

#: Parts of the core, lowest first: a part imports none of a later line.
LAYERS = (
    {"checks", "errors", "figures", "flat", "functions", "kernels", "overrides"}
    | {"pool", "randomness", "ranges", "schedules"},
    {"bases", "rules"},
    {"optimizers"},
    {"curvature", "laplacian", "listing", "theory", "trajectories"} | {"unrolling"},
    {"callbacks"},
    {"parser"},
    {"cli"},
    {"inspection", "orthogonality", "predictions", "scoping", "studies", "trained"},
    {"__main__"},
)


def imported(source):
    """Return the dotted names that a source imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_of(file):
    return imported(file.read_text())


def tops(names):
    return {name.split(".")[0] for name in names}


def package_of(file):
    return file.relative_to(ROOT).parts[0]


def part_of(file):
    """Return the part of the core that a file belongs to, such as "optimizers"."""
    return file.relative_to(ROOT / "lightning_ecd").with_suffix("").parts[0]


def layer_of(part):
    found = [number for number, parts in enumerate(LAYERS) if part in parts]
    assert found, f"lightning_ecd/{part} has no place in LAYERS"
    return found[0]


def test_the_reader_of_imports_sees_nested_and_plain_ones():
    source = "import a.b\ndef f():\n    from c.d import e\n"
    assert imported(source) == {"a.b", "c.d.e"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_packages_import_in_one_direction(file):
    allowed = {
        "lightning_ecd": {"lightning_ecd"},
        "datamodules": {"lightning_ecd", "datamodules"},
        "modules": {"lightning_ecd", "modules"},
        "tune": set(PACKAGES),
    }[package_of(file)]
    if file == ROOT / "lightning_ecd" / "__main__.py":
        allowed = allowed | {"tune"}  # the face
    ours = tops(imports_of(file)) & {*PACKAGES, "tests"}
    assert ours <= allowed


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_nobody_imports_the_face_and_only_tune_imports_ray(file):
    names = imports_of(file)
    assert not any(name.startswith("lightning_ecd.__main__") for name in names)
    assert "ray" not in tops(names) or package_of(file) == "tune"


CORE = [file for file in FILES if package_of(file) == "lightning_ecd"]


@pytest.mark.parametrize("file", CORE, ids=lambda f: str(f.relative_to(ROOT)))
def test_parts_of_the_core_import_in_one_direction(file):
    part = part_of(file)
    if part == "__init__":
        assert not tops(imports_of(file)) & set(PACKAGES)
        return
    for name in imports_of(file):
        package, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if package != "lightning_ecd" or other == "__version__":
            continue
        assert layer_of(other) <= layer_of(part), f"{part} imports {other}"


@pytest.mark.parametrize("file", CORE, ids=lambda f: str(f.relative_to(ROOT)))
def test_lightning_is_imported_by_the_command_line_and_callbacks_alone(file):
    if part_of(file) not in ("parser", "cli", "studies", "callbacks"):
        assert not tops(imports_of(file)) & LIGHTNING


def test_the_face_imports_nothing_heavy_at_its_top():
    tree = ast.parse((ROOT / "lightning_ecd" / "__main__.py").read_text())
    source = "\n".join(
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    )
    assert tops(imported(source)) <= {
        "sys",
        "collections",
        "importlib",
        "lightning_ecd",
    }
