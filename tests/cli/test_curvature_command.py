"""`lightning-ecd curvature`: the loss around a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy

from datamodules import Digits
from lightning_ecd.__main__ import main
from modules import LeNet
from tests.cli.conftest import EXPERIMENT, ROOT, SHORT
from tests.cli.test_configs import missing

#: A measurement of a second.
LITTLE = (
    *("--samples=64", "--chunk=40", "--probes=2", "--steps=6", "--products=6"),
    *("--top=1", "--draws=2", "--points=3"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", "0")
        main(["fit", "--config", EXPERIMENT, *SHORT, "--name=short"])
    return folder / "logs" / "short" / "version_0"


@pytest.fixture
def look(cli, trained):
    """A function that looks at the checkpoint and writes into the present folder."""

    def run(*args):
        ckpt = trained / "checkpoints" / "last.ckpt"
        return cli("curvature", f"--ckpt_path={ckpt}", "--output=found", *LITTLE, *args)

    return run


def numbers():
    stored = json.loads(Path("found/curvature.json").read_text())
    return {name: entry["value"] for name, entry in stored.items()}


def test_writes_numbers_arrays_pictures_and_tensorboard(look):
    result = look("--plane=3", "--probe_steps=3", "--diagonal=true")
    assert (result.code, result.err) == (0, "")
    assert "64 samples" in result.out and "results: found" in result.out
    stored = json.loads(Path("found/curvature.json").read_text())
    for name in ("loss", "trace", "top_1", "local_energy_0.1", "sharpness_0.05"):
        assert name in result.out
    assert stored["trace"]["error"] > 0 and stored["loss"]["error"] is None
    arrays = np.load("found/curvature.npz")
    assert arrays["nodes"].shape == arrays["weights"].shape == (2, 6)
    assert arrays["plane"].shape == (3, 3)
    n = arrays["diagonal"].shape
    assert arrays["fisher_diagonal"].shape == arrays["top_vectors"][0].shape == n
    for name in ("spectrum", "slices", "probe"):
        assert Path(f"found/{name}.png").stat().st_size > 5000
    board = EventAccumulator("found", {"images": 0}).Reload()
    assert {f"curvature/{name}" for name in stored} == set(board.Tags()["scalars"])
    assert {"curvature/spectrum", "curvature/slices"} <= set(board.Tags()["images"])
    assert board.Scalars("curvature/loss")[0].step == 4


def test_loss_and_gradient_are_those_of_the_stored_weights(look, trained):
    """Over the first samples of the first epoch, in evaluation mode."""
    assert look().code == 0
    weights = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    network = LeNet(size=8).eval()
    network.load_state_dict(
        {
            name.removeprefix("network."): value
            for name, value in weights["state_dict"].items()
            if name.startswith("network.")
        }
    )
    data = Digits()
    data.setup("fit")
    batches = [*data.train_dataloader()]
    images, labels = (torch.cat(part)[:64] for part in zip(*batches, strict=True))
    loss = cross_entropy(network(images), labels)
    loss.backward()
    norm = torch.cat([p.grad.reshape(-1) for p in network.parameters()]).norm()
    found = numbers()
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_a_second_look_finds_the_same(look):
    assert look().code == 0
    first = Path("found/curvature.json").read_text()
    assert look().code == 0
    assert Path("found/curvature.json").read_text() == first
    assert look("--seed=1").code == 0
    assert Path("found/curvature.json").read_text() != first


@pytest.mark.parametrize("matrix", ["ggn", "fisher"])
def test_positive_matrices_have_no_negative_eigenvalue(matrix, look):
    assert look(f"--matrix={matrix}", "--dtype=float64", "--part=test").code == 0
    assert numbers()["lowest_eigenvalue"] > -1e-10 < numbers()["top_1"]


def test_exact_spectrum_of_a_small_network(look, monkeypatch):
    small = ["--model.network=modules.SmallMnistFC", "--model.network.inputs=64"]
    small += ["--model.network.width=3", "--samples=20", "--exact=true"]
    ckpt = Path("small.ckpt")
    torch.manual_seed(0)
    from modules import SmallMnistFC

    state = SmallMnistFC(64, 3).state_dict()
    torch.save({"state_dict": {f"network.{k}": v for k, v in state.items()}}, ckpt)
    config = ["--config", EXPERIMENT]
    result = look(*config, *small, "--ckpt_path=small.ckpt")
    assert (result.code, result.err) == (0, "")
    arrays = np.load("found/curvature.npz")
    assert arrays["nodes"].shape == (1, 64 * 3 + 3 + 3 * 10 + 10)
    found = numbers()
    assert found["trace"] == pytest.approx(arrays["nodes"].sum())
    assert found["top_1"] == pytest.approx(arrays["nodes"].max(), rel=1e-3)


def test_last_of_the_newest_run_by_its_name(cli, trained, monkeypatch):
    monkeypatch.chdir(trained.parents[2])
    result = cli("curvature", "--ckpt_path=last", "--name=short", *LITTLE)
    assert (result.code, result.err) == (0, "")
    assert (trained / "curvature" / "spectrum.png").is_file()
    result = cli("curvature", "--ckpt_path=best", "--name=short", *LITTLE)
    assert (result.code, "no run below logs/short has one" in result.err) == (2, True)


def test_last_by_a_config_is_looked_at_as_it_was_run(cli):
    """The flags of the fit are in the run's config.yaml, not in the experiment's."""
    config = ["--config", EXPERIMENT]
    assert cli("fit", *config, *SHORT, "--data.seed=5").code == 0
    folder = Path("logs/bbi_digits/version_0")
    found = []
    for where in (config, ["--name=bbi_digits"], [*config, "--data.seed=0"]):
        assert cli("curvature", "--ckpt_path=last", *where, *LITTLE).code == 0
        found.append((folder / "curvature" / "curvature.json").read_text())
    assert found[0] == found[1] != found[2]


def test_the_way_to_another_checkpoint_ends_at_its_loss(look, trained):
    last = trained / "checkpoints" / "last.ckpt"
    other = torch.load(last, weights_only=True)
    for value in other["state_dict"].values():
        value.mul_(1.1)
    torch.save(other, "other.ckpt")
    assert look("--to=other.ckpt").code == 0
    way = np.load("found/curvature.npz")["way"]
    assert way[0] == pytest.approx(numbers()["loss"], rel=1e-5)
    assert numbers()["distance_to_other"] > 0
    assert look("--ckpt_path=other.ckpt", "--config", EXPERIMENT).code == 0
    assert way[-1] == pytest.approx(numbers()["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ckpt_path=nowhere.ckpt"], ["there is no file nowhere.ckpt"]),
        (["--ckpt_path=half.ckpt"], ["half.ckpt", "truncated or corrupted"]),
        (["--ckpt_path=last"], ["last", "--name", "--config"]),
        (["--ckpt_path=last", "--name=gone"], ["no run below", "gone"]),
        (["--to=nowhere.ckpt"], ["there is no file nowhere.ckpt"]),
        (["--stepz=3"], ["stepz", "did you mean --steps"]),
        (["--model.network.outpits=3"], ["outpits"]),
        (["--model.network.outputs=12"], ["outputs is 12", "has 10"]),
        (
            ["--model.network=modules.SmallMnistFC", "--model.network.inputs=64"],
            ["another model"],
        ),
        (["--steps=many"], ["steps", "many"]),
        (["--steps=0"], ["steps must be at least 1, got 0"]),
        (["--probes", "-1"], ["probes must be at least 0, got -1"]),
        (["--samples=0"], ["samples must be at least 1, got 0"]),
        (["--products=5"], ["products must be 0 or at least 6, got 5"]),
        (["--reach=0"], ["reach must be above 0"]),
        (["--noise=[0.1, -1]"], ["noise must be above 0, got -1"]),
        (["--matrix=hesse"], ["matrix", "hesse"]),
        (["--part=all"], ["part", "all"]),
        (["--matrix=ggn", "--exact=true"], ["exact is for the matrix hessian"]),
        (["--part=val", "--data.val_size=0"], ["no val samples"]),
        (["--output=half.ckpt"], ["half.ckpt"]),
        (["--data=datamodules.MNIST", "--data.data_dir=gone"], ["gone/MNIST"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_bad_input_is_one_line(arguments, words, look, trained):
    whole = (trained / "checkpoints" / "last.ckpt").read_bytes()
    Path("half.ckpt").write_bytes(whole[: len(whole) // 2])
    config = [] if "--ckpt_path=last" in arguments else ["--config", EXPERIMENT]
    result = look(*config, *arguments)
    assert result.code == 2
    for word in words:
        assert word in result.error
    assert not Path("found").exists()


def test_a_matrix_that_does_not_fit_is_refused(look, monkeypatch):
    monkeypatch.setattr("lightning_ecd.curvature.inspection._LARGEST", 1000)
    result = look("--exact=true")
    assert result.code == 2
    assert "parameters, at most 1,000" in result.error
    monkeypatch.undo()
    monkeypatch.setattr("os.sysconf", lambda name: 1000)
    assert "there are 0 GB" in look("--exact=true").error


def test_a_checkpoint_beside_no_config_asks_for_one(look, trained):
    file = trained / "checkpoints" / "last.ckpt"
    Path("alone.ckpt").write_bytes(file.read_bytes())
    assert "--config" in look("--ckpt_path=alone.ckpt").error


def test_ctrl_c_is_one_line(look, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_ecd.inspection.Inspection.run", interrupt)
    result = look()
    assert result.code == 130
    assert "interrupted" in result.error


def test_help_explains_every_argument(cli):
    result = cli("curvature", "--help")
    assert result.code == 0
    for name in ("--ckpt_path", "--matrix", "--probes", "--noise", "--probe_steps"):
        assert name in result.out


def test_a_lenet_on_mnist(cli):
    experiment = ROOT / "configs" / "experiment" / "spectrum_small_lenet.yaml"
    if reason := missing(experiment):
        pytest.skip(reason)
    short = [*SHORT, "--test_after_fit=false"]
    assert cli("fit", "--config", experiment, *short).code == 0
    name = "--name=spectrum_small_lenet"
    result = cli("curvature", "--ckpt_path=last", name, *LITTLE)
    assert (result.code, result.err) == (0, "")
    assert "47658 parameters" in result.out


# -- scoping -----------------------------------------------------------------------


def test_scoping_draws_the_cartoon(cli):
    result = cli("scoping", "--output=pictures/cartoon.png")
    assert (result.code, result.err) == (0, "")
    assert "lowest at x = 341" in result.out
    assert Path("pictures/cartoon.png").stat().st_size > 10000
    assert "gammas must be above 0" in cli("scoping", "--gammas=[0.0]").error
    assert "did you mean --gammas" in cli("scoping", "--gamma=1").error
