"""Every shipped configuration parses and runs; what is printed can be read back."""

import os
import re
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import EXPERIMENT, ROOT, SHORT

CONFIGS = ROOT / "configs"
#: Data modules that read nothing, and the folders of those that are named otherwise.
WITHOUT_FILES = {"Digits", "Steps", "Collocation", "Gaussians", "Quadratics"}
WITHOUT_FILES |= {"SmallImages", "SyntheticPowerLaw"}
FOLDERS = {
    "ImageStreams": "MNIST",
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "TinyImageNet": "tiny-imagenet-200",
    "UCI": "uci",
}
#: What makes a step of seconds short, and spares the minute that whitening takes.
_SMALL = ["--data.batch_size=4", "--data.eval_batch_size=4", "--data.whiten=false"]
#: A kernel of 3000 samples takes half a minute.
_FEW = ["--data.samples=200"]
QUICKER = {
    "entropysgd_allcnn": _SMALL,
    "sgd_allcnn": _SMALL,
    "regimes_bike": _FEW,
    "regimes_mnist": _FEW,
    "regimes_sgemm": _FEW,
}


def files(kind):
    return sorted((CONFIGS / kind).glob("*.yaml"))


def stem(file):
    return file.stem


def missing(file):
    """Return what an experiment needs that is not here, or None."""
    text = file.read_text()
    data = re.search(r"^data: (.*)$", text, re.M)[1]
    part = yaml.safe_load((file.parent / data).read_text())
    name = part["class_path"].split(".")[-1]
    if name == "Text":
        return f"{part['init_args']['path']} does not come with the project"
    if name in WITHOUT_FILES:
        return None
    folder = Path(os.environ.get("LIGHTNING_ECD_DATA", "data"), FOLDERS.get(name, name))
    if folder.is_dir():
        return None
    return f"{folder} is missing: set LIGHTNING_ECD_DATA"


def test_every_folder_of_configs_is_tested():
    kinds = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}
    assert kinds <= {"trainer", "data", "network", "optimizer", "experiment"} | {
        "scheduler",
        "search",
        "table",
        "study",
        "comparison",
    }


def test_every_file_begins_by_saying_what_it_is():
    bare = [f for f in CONFIGS.glob("*/*.yaml") if f.read_text()[:2] != "# "]
    assert not bare


#: What commands run; each leaves its logs in logs/NAME.
RUNNABLE = ("experiment", "study", "search", "table", "comparison")


def test_no_two_files_share_a_folder_of_logs():
    names = [stem(file) for kind in RUNNABLE for file in files(kind)]
    assert not {name for name in names if names.count(name) > 1}


@pytest.mark.parametrize("file", files("experiment"), ids=stem)
def test_every_experiment_runs(file, cli):
    if reason := missing(file):
        pytest.skip(reason)
    quick = [*SHORT, "--trainer.fast_dev_run=1", *QUICKER.get(stem(file), [])]
    result = cli("fit", "--config", file, *quick)
    assert (result.code, result.err) == (0, "")
    assert not Path("logs").exists()


COMPARISONS = [file for file in files("experiment") if stem(file)[:8] == "evaluate"]


@pytest.mark.parametrize("file", COMPARISONS, ids=stem)
def test_every_comparison_runs_with_all_its_optimizers(file, cli):
    if reason := missing(file):
        pytest.skip(reason)
    few = ["--data.test_runs=2", "--data.eval_steps=3", "--data.window=3"]
    result = cli("test", "--config", file, *SHORT, *few)
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("file", files("experiment"), ids=stem)
def test_every_experiment_states_published_and_own_numbers(file):
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(head)
    assert re.search(r"^# Published\b.*", text, re.M)
    assert re.search(r"^# Ours\b", text, re.M) and "XX" not in text


def asked_for(found, wanted):
    """Return of a configuration what another names: the rest are defaults."""
    if isinstance(wanted, dict):
        return {k: asked_for(found[k], v) for k, v in wanted.items()}
    if isinstance(wanted, list):
        return [asked_for(*pair) for pair in zip(found, wanted, strict=True)]
    return found


@pytest.mark.parametrize(
    "kind", ["optimizer", "network", "data", "scheduler", "trainer"]
)
def test_every_part_parses(kind, cli):
    for file in files(kind):
        flag = f"--{kind}" if kind in ("data", "trainer") else f"--model.{kind}"
        result = cli("fit", "--config", EXPERIMENT, flag, file, "--print_config")
        assert (result.code, result.err) == (0, ""), file
        printed = yaml.safe_load(result.out)
        found = printed if flag.count(".") == 0 else printed["model"]["init_args"]
        part, wanted = found[kind], yaml.safe_load(file.read_text())
        assert (
            part.get("class_path", "").split(".")[-1]
            == wanted.get("class_path", "").split(".")[-1]
        )
        values, own = part.get("init_args", part), wanted.get("init_args", wanted)
        own.pop("class_path", None)
        assert asked_for(values, own) == own, file


def test_a_printed_configuration_round_trips(cli, tmp_path):
    first = cli("fit", "--config", EXPERIMENT, *SHORT, "--print_config")
    assert first.code == 0
    (tmp_path / "printed.yaml").write_text(first.out)
    second = cli("fit", "--config", "printed.yaml", "--print_config")
    assert second.code == 0
    assert yaml.safe_load(second.out) == yaml.safe_load(first.out)
    optimizer = yaml.safe_load(first.out)["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "lightning_ecd.optimizers.BBI"
    assert optimizer["init_args"]["lr"] == 0.2
