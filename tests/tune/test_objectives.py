"""What trials run: fits and studies, told by their reports."""

import signal
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from lightning_ecd import studies
from lightning_ecd.cli import CommandLine
from lightning_ecd.errors import Diverged, UserError
from tests.cli.conftest import EXPERIMENT, ROOT, SHORT, cli  # noqa: F401
from tests.tune.toys import job, nobody
from tune import Grid, Space, Trial, local
from tune.objectives import Fit, Seeded, Trajectories, overridden
from tune.trial import Stopped

ZAKHAROV = str(ROOT / "configs" / "study" / "zakharov.yaml")


class Told(Trial):
    """Keeps what it is told: numbers, and whether there was a checkpoint."""

    def __init__(self, folder, values, metric="val/accuracy", **settings):
        self.crash_at = settings.pop("crash_at", None)
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(0, values, folder, metric, "max", **settings)
        self.told, self.saved, self.finished = [], [], False

    def _deliver(self, metrics, save):
        if self.reports == self.crash_at:
            raise Stopped
        self.finished = metrics.pop("finished", False)
        self.told.append(dict(metrics))
        self.saved.append(save is not None)
        if save is not None:
            self.place = self.folder / f"saved_{self.reports}"
            self.place.mkdir(exist_ok=True)
            save(self.place)

    @property
    def weights(self):
        return torch.load(self.place / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def settings():
    """Of three epochs of four batches."""
    args = ["--config", EXPERIMENT, *SHORT, "--trainer.max_epochs=3"]
    args += ["--model.network.dropout=0.3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it: undone after
        settings = CommandLine(args, run=False, folder=Path()).dumped()
    settings.pop("config", None)
    return settings


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def run(settings, trial, metric="val/accuracy", **more):
    Fit(settings, metric, **more)(trial)
    return trial


def changed(settings, **trainer):
    return overridden(settings, {f"trainer.{k}": v for k, v in trainer.items()})


# -- settings ----------------------------------------------------------------------


def test_settings_are_overridden_by_short_and_full_names(settings):
    before = deepcopy(settings)
    values = {
        "lr": 0.125,
        "model.optimizer.extra_energy": 2.0,
        "model.network.dropout": 0.5,
        "data.batch_size": 25,
        "seed_everything": 3,
        "trainer.max_epochs": 9,
    }
    configured = Fit(settings, "val/loss").configured(values)
    model = configured["model"]["init_args"]
    assert model["optimizer"]["init_args"]["lr"] == 0.125
    assert model["optimizer"]["init_args"]["extra_energy"] == 2.0
    assert model["network"]["init_args"]["dropout"] == 0.5
    assert configured["data"]["init_args"]["batch_size"] == 25
    assert configured["seed_everything"] == 3
    assert configured["trainer"]["max_epochs"] == 9
    assert settings == before


def test_only_what_is_named_changes(settings):
    configured = Fit(settings, "val/loss").configured({"lr": 0.125})
    was = settings["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    configured["model"]["init_args"]["optimizer"]["init_args"]["lr"] = was
    assert configured == settings


def test_lists_and_names_that_repeat_are_settings_too():
    nested = {"a": {"a": 1, "init_args": {"b": [1, 2]}}}
    assert overridden(nested, {"a.a": 5, "a.b": [3, 4]}) == {
        "a": {"a": 5, "init_args": {"b": [3, 4]}}
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lrx", "no setting model.optimizer.lrx: instead of lrx there is .*lr"),
        ("model.networks.dropout", "instead of networks there is .*network"),
        ("model.scheduler.gamma", "instead of gamma there is nothing"),
        ("trainer.max_epochs.x", "instead of x there is nothing"),
        ("data.", "no setting data"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_known_ones(name, words, settings):
    with pytest.raises(UserError, match=words) as caught:
        Fit(settings, "val/loss").configured({name: 1})
    assert "\n" not in str(caught.value)


# -- a fit -------------------------------------------------------------------------


def test_a_fit_reports_every_epoch_and_its_end(settings, tmp_path):
    trial = run(settings, Told(tmp_path, {"lr": 0.1}))
    assert [told["epoch"] for told in trial.told] == [0, 1, 2, 3]
    assert trial.saved == [True, True, True, False] and trial.finished
    metrics = {"train/loss", "train/epoch_loss", "val/loss", "val/accuracy", "epoch"}
    assert all(set(told) >= metrics for told in trial.told)
    assert not any(key.startswith(("optimizer/", "test/")) for key in trial.told[-1])
    last, end = trial.told[-2:]
    assert all(end[key] == last[key] for key in metrics - {"epoch"})


def test_its_numbers_are_those_of_the_command(settings, tmp_path, cli):  # noqa: F811
    trial = run(settings, Told(tmp_path / "trial", {"lr": 0.125}))
    config = tmp_path / "trial" / "config.yaml"
    saved = yaml.safe_load(config.read_text())
    assert saved == Fit(settings, "val/loss").configured({"lr": 0.125})
    assert cli("fit", "--config", config, "--name=command").code == 0
    folder = Path("logs/command/version_0")
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    weights = trial.weights
    assert all(torch.equal(weights[k], v) for k, v in state["state_dict"].items())
    assert state["metrics"]["val/accuracy"] == trial.told[-1]["val/accuracy"]


def test_a_fit_reports_validations_within_an_epoch_too(settings, tmp_path):
    trial = run(changed(settings, val_check_interval=2), Told(tmp_path, {}))
    assert [told["epoch"] for told in trial.told] == [0, 0, 1, 1, 2, 2, 3]
    assert trial.saved == [False, True, False, True, False, True, False]


def test_the_weights_are_tested_at_the_end_only(settings, tmp_path, cli):  # noqa: F811
    trial = Told(tmp_path / "trial", {"lr": 0.1}, "test/accuracy")
    run(settings, trial, "test/accuracy")
    (told,) = trial.told
    assert trial.finished and trial.saved == [False]
    assert {"test/accuracy", "test/loss", "val/accuracy"} <= set(told)
    result = cli("fit", "--config", tmp_path / "trial" / "config.yaml")
    assert f"test/accuracy: {told['test/accuracy']:.6g}" in result.out


def test_a_trial_writes_logs_and_no_checkpoints_of_its_own(settings, tmp_path):
    run(settings, Told(tmp_path, {"lr": 0.1}), checkpoint=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"config.yaml", "metrics.csv", "hparams.yaml"}
    assert not any(name.endswith((".ckpt", ".png")) for name in names)
    assert "checkpoints" not in names


def test_the_hyper_parameter_tab_shows_values_and_metric(settings, tmp_path):
    run(settings, Told(tmp_path, {"lr": 0.125}, "train/epoch_loss"), "train/epoch_loss")
    events = EventAccumulator(str(tmp_path)).Reload()
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    declared = {info.name.tag for info in data.metric_infos}
    assert {"val/accuracy", "train/epoch_loss"} <= declared
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["optimizer/lr"].number_value == 0.125
    assert "train/epoch_loss" in events.Tags()["scalars"]


def test_nothing_is_printed(settings, tmp_path, capfd):
    run(settings, Told(tmp_path, {}))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


# -- going on ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        return run(settings, Told(tmp_path_factory.mktemp("whole"), {"lr": 0.1}))


def assert_same(whole, *parts):
    assert [told for part in parts for told in part.told] == whole.told
    weights = parts[-1].weights
    assert all(torch.equal(weights[k], v) for k, v in whole.weights.items())


@pytest.mark.parametrize("report", [2, 3])
def test_a_trial_goes_on_to_the_bit_after_a_crash(report, settings, whole, tmp_path):
    first = Told(tmp_path / "a", {"lr": 0.1}, crash_at=report)
    with pytest.raises(Stopped):
        run(settings, first)
    torch.manual_seed(99)
    second = Told(tmp_path / "b", {"lr": 0.1}, checkpoint=first.place)
    run(settings, second)
    assert second.reports == 4
    assert_same(whole, first, second)


def test_a_trial_whose_last_report_is_missing_only_reports(settings, whole, tmp_path):
    """The metrics of the end are in the checkpoint of the last epoch."""
    last = Told(tmp_path, {"lr": 0.1}, checkpoint=whole.folder / "saved_3")
    run(settings, last)
    assert last.told == whole.told[-1:]
    assert last.finished and last.reports == 4


def test_ctrl_c_ends_a_trial_that_goes_on_from_its_last_epoch(
    settings, whole, tmp_path, monkeypatch
):
    from modules import Classifier

    loss, calls = Classifier.loss, []

    def interrupting(self, batch):
        calls.append(1)
        if len(calls) == 8:  # 4 batches and one of validation in an epoch
            signal.raise_signal(signal.SIGINT)
        return loss(self, batch)

    first = Told(tmp_path / "a", {"lr": 0.1})
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "loss", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(settings, first)
    assert len(first.told) == 1
    second = Told(tmp_path / "b", {"lr": 0.1}, checkpoint=first.place)
    run(settings, second)
    assert_same(whole, first, second)


def test_a_member_of_a_population_goes_on_with_other_hyper_parameters(
    settings, whole, tmp_path
):
    for number, name in enumerate(("lr", "model.optimizer.lr")):
        member = Told(
            tmp_path / str(number),
            {name: 0.03},
            checkpoint=whole.folder / "saved_1",
            population=True,
        )
        run(settings, member)
        file = member.place / "last.ckpt"
        state = torch.load(file, weights_only=True)["optimizer_states"][0]
        assert [group["lr"] for group in state["param_groups"]] == [0.03]
        assert member.told != whole.told[1:]


# -- what goes wrong ---------------------------------------------------------------


def test_divergence_is_raised(settings, tmp_path):
    trial = Told(tmp_path, {"model.groups": {"*": {"lr": 1e30}}})
    with pytest.raises(Diverged):
        run(changed(settings, log_every_n_steps=1), trial)
    assert not trial.finished


def test_a_bad_value_fails_its_trial_and_not_the_search(settings, tmp_path, capfd):
    """The middle of a range is tried before a search begins, its ends are not."""
    fit = Fit(changed(settings, max_epochs=1), "val/accuracy")
    space = Space({"lr": [-1.0, 0.1]})
    task = job(
        *[fit],
        **{"space": space, "metric": "val/accuracy", "mode": "max"},
        **{"samples": 2, "searcher": Grid()},
    )
    bad, good = local.run(task, tmp_path, nobody)
    assert (bad.status, good.status) == ("failed", "completed")
    assert "lr must lie in (0, inf), got -1" in bad.error
    assert capfd.readouterr().err == ""


def test_a_value_of_a_wrong_type_fails_its_trial(settings, tmp_path):
    with pytest.raises(UserError, match="batch_size"):
        run(settings, Told(tmp_path, {"data.batch_size": 12.5}))


# -- seeds -------------------------------------------------------------------------


def test_a_repeat_sets_every_seed_and_keeps_the_values(settings, tmp_path):
    keys = ["seed_everything", "data.seed", "model.optimizer.seed"]
    seeded = Seeded(Fit(settings, "val/accuracy"), {"lr": 0.1}, keys)
    trials = [Told(tmp_path / str(i), {"seed": i}) for i in (5, 6)]
    for trial in trials:
        seeded(trial)
    saved = yaml.safe_load((tmp_path / "5" / "config.yaml").read_text())
    optimizer = saved["model"]["init_args"]["optimizer"]["init_args"]
    assert (saved["seed_everything"], optimizer["seed"]) == (5, 5)
    assert (saved["data"]["init_args"]["seed"], optimizer["lr"]) == (5, 0.1)
    assert trials[0].told != trials[1].told
    assert trials[0].finished


# -- studies -----------------------------------------------------------------------

STUDY = """
function: {class_path: lightning_ecd.functions.Quadratic}
optimizers:
  HB:
    class_path: lightning_ecd.optimizers.HeavyBall
    init_args: {lr: 0.1, momentum: 0.0}
  BBI: {class_path: lightning_ecd.optimizers.BBI}
steps: 10
random_starts: 3
runs: 2
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    return studies.read(["--config", str(tmp_path / "study.yaml")])[0]


def test_a_study_runs_a_population_of_one_optimizer_per_trial(study, tmp_path):
    trial = Told(tmp_path / "trial", {"lr": 0.05, "steps": 7}, "best_median")
    Trajectories(study, "HB")(trial)
    (told,) = trial.told
    assert trial.finished and trial.saved == [False]
    assert told["runs"] == 6 and told["steps"] == 7
    expected = studies.build(overridden(study, {"optimizers.HB.lr": 0.05, "steps": 7}))
    assert told == expected.summary(expected.run()["HB"])


def test_its_values_and_numbers_are_in_tensorboard(study, tmp_path):
    trial = Told(tmp_path / "trial", {"lr": 0.05}, "best")
    Trajectories(study, "HB")(trial)
    events = EventAccumulator(str(trial.folder)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["lr"].number_value == 0.05
    (scalar,) = events.Scalars("best")
    assert scalar.value == pytest.approx(trial.told[0]["best"], rel=1e-6)


def test_a_study_of_another_seed_starts_elsewhere(study, tmp_path):
    seeded = Seeded(Trajectories(study, "HB"), {"lr": 0.05}, ["seed"])
    trials = [Told(tmp_path / str(i), {"seed": i}, "best") for i in range(2)]
    for trial in trials:
        seeded(trial)
    assert trials[0].told != trials[1].told


def test_an_optimizer_that_the_study_has_not_is_refused(study):
    with pytest.raises(UserError, match="the study has no 'SGD'; it has HB, BBI"):
        Trajectories(study, "SGD")
    with pytest.raises(UserError, match=r"no setting optimizers\.HB\.lrx"):
        Trajectories(study, "HB").configured({"lrx": 1.0})
