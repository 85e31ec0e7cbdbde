"""What a search makes of its description, and what it refuses."""

import re

import pytest

from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import REGISTRY
from lightning_ecd.ranges import Choice, LogUniform, Uniform
from tests.cli.conftest import EXPERIMENT, ROOT
from tune import ASHA, Grid, MedianStopping, PopulationBased, Resources
from tune.objectives import Fit, Trajectories
from tune.search import Arm, Repeat, Search

STUDY = str(ROOT / "configs" / "study" / "zakharov.yaml")
ONE = str(ROOT / "configs" / "study" / "two_basins_ratio.yaml")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it: undone after
    return tmp_path


def search(**settings):
    defaults = {"metric": "val/accuracy", "mode": "max", "backend": "local"}
    if "study" not in settings:
        defaults["experiment"] = EXPERIMENT
    return Search(**(defaults | settings))


def jobs(**settings):
    made = search(**settings)
    return made.jobs(made.settings())


def optimizer_of(job):
    return job.objective.settings["model"]["init_args"]["optimizer"]


# -- the compared optimizers -------------------------------------------------------


def test_without_optimizers_the_experiments_own_is_searched():
    (name,) = made = jobs(samples=7, retries=1)
    assert name == "BBI"
    job = made[name]
    assert isinstance(job.objective, Fit)
    assert (job.samples, job.retries, job.metric, job.mode) == (
        *(7, 1, "val/accuracy", "max"),
    )
    # what the registry says beside the hyper-parameters
    assert job.space.coordinates == REGISTRY["BBI"].ranges


def test_every_optimizer_has_its_own_trials_and_settings(place):
    (place / "heavy.yaml").write_text(
        "class_path: lightning_ecd.optimizers.HeavyBall\ninit_args: {momentum: -0.5}\n"
    )
    made = jobs(
        arguments=["--data.batch_size=25"],
        optimizers={
            "BBI": Arm(arguments=["--model.optimizer.bounce=isotropic"]),
            "SGD": Arm(space={"lr": "LogUniform(1e-3, 1)"}),
            "heavy": Arm(str(place / "heavy.yaml"), space={"lr": [0.1, 0.2]}),
            "Adam": Arm("torch.optim.Adam", ["--data.batch_size=10"]),
        },
    )
    paths = [optimizer_of(job)["class_path"] for job in made.values()]
    assert paths == [
        *("lightning_ecd.optimizers.BBI", "torch.optim.SGD"),
        *("lightning_ecd.optimizers.HeavyBall", "torch.optim.Adam"),
    ]
    own = [optimizer_of(job)["init_args"] for job in made.values()]
    assert own[0]["bounce"] == "isotropic"
    assert "extra_energy" not in own[1]
    assert own[2]["momentum"] == -0.5
    data = [job.objective.settings["data"]["init_args"] for job in made.values()]
    assert [settings["batch_size"] for settings in data] == [25, 25, 25, 10]
    assert made["heavy"].space.coordinates == {"lr": Choice((0.1, 0.2))}
    assert made["Adam"].space.coordinates == REGISTRY["Adam"].ranges


def test_a_range_for_all_replaces_adds_and_takes_out():
    made = jobs(
        optimizers={"BBI": Arm(), "SGD": Arm(space={"lr": "Uniform(0, 1)"})},
        space={"lr": "LogUniform(0.01, 1)", "data.batch_size": [25, 50], "eps": None},
    )
    wanted = {"lr": LogUniform(0.01, 1), "data.batch_size": Choice((25, 50))}
    assert made["SGD"].space.coordinates == wanted
    assert made["BBI"].space.coordinates == {**REGISTRY["BBI"].ranges, **wanted}
    removed = next(iter(REGISTRY["BBI"].ranges))
    (left,) = jobs(space={removed: None, "data.seed": "Integers(0, 9)"}).values()
    assert removed not in left.space.coordinates


def test_a_grid_has_as_many_trials_as_points():
    space = {"lr": [0.1, 0.2, 0.3], "extra_energy": [0.0, 1.0]}
    (job,) = jobs(
        optimizers={"BBI": Arm(space=space)}, searcher=Grid(), samples=99
    ).values()
    assert job.samples == 6


def test_a_study_names_its_optimizers():
    made = jobs(
        study=STUDY,
        metric="best",
        mode="min",
        arguments=["--steps=5"],
        optimizers={
            "BBI": Arm(space={"lr": "LogUniform(1e-5, 1e-3)"}),
            "SGD": Arm(arguments=["--seed=3"], space={"momentum": "Uniform(0, 1)"}),
        },
    )
    assert all(isinstance(job.objective, Trajectories) for job in made.values())
    settings = [job.objective.settings for job in made.values()]
    assert [own["seed"] for own in settings] == [0, 3]
    assert [list(own["optimizers"]) for own in settings] == [["BBI"], ["SGD"]]
    assert made["SGD"].space.coordinates == {"momentum": Uniform(0, 1)}


def test_a_study_of_one_optimizer_need_not_name_it():
    space = {"lr": "LogUniform(1e-3, 1e-1)"}
    made = jobs(study=ONE, metric="ratio", mode="min", arguments=["--runs=4"])
    assert list(made) == ["BBI"]
    with pytest.raises(UserError, match="say which of the study's: BBI, SGD"):
        jobs(study=STUDY, metric="best", mode="min", space=space)


# -- refused at once ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"experiment": None}, "either an experiment or a study"),
        ({"experiment": EXPERIMENT, "study": STUDY}, "either an experiment or a study"),
        ({"experiment": "none.yaml"}, "there is no file none.yaml"),
        ({"study": "none.yaml"}, "there is no file none.yaml"),
        ({"mode": "lowest"}, "mode must be min or max, got 'lowest'"),
        ({"backend": "dask"}, "backend must be ray or local"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"retries": -1}, "retries must be at least 0, got -1"),
        ({"concurrent": 0}, "concurrent must be at least 1, got 0"),
        ({"hours": 0.0}, "hours must be positive, got 0.0"),
        ({"hours": float("nan")}, "hours must be positive"),
        ({"repeat": Repeat(seeds=[])}, "repeat.seeds must name at least one"),
        ({"optimizers": {"../BBI": Arm()}}, "optimizers: '../BBI' must be of letters"),
    ],
)
def test_bad_arguments_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        search(**settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cpus": -1.0}, "resources.cpus must be at least 0"),
        ({"gpus": -0.5}, "resources.gpus must be at least 0"),
        ({"gpus": 1.5}, "resources.gpus must be a whole number above 1"),
    ],
)
def test_bad_resources_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        Resources(**settings)
    Resources(0.0, 0.25)


# -- refused before a trial starts -------------------------------------------------


def label(value):
    """Name a case; objects by their class, for an address differs between runs."""
    return re.sub(r"<[\w.]*?(\w+) object at \w+>", r"\1", str(value))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"metric": "val/acc"},
            "metric: val/acc is not reported; reported are .*val/accuracy",
        ),
        ({"optimizers": {"Nope": Arm()}}, "'Nope' is not registered; .*BBI"),
        ({"space": {"lrx": "Uniform(0, 1)"}}, "no setting model.optimizer.lrx"),
        ({"space": {"lr": "Uniform(1, 0)"}}, "space of lr: .* from a lower"),
        ({"space": {"data.batch_size": "Uniform(1, 9)"}}, "batch_size"),
        ({"space": {"lr": "Uniform(-2, -1)"}}, "lr must lie in"),
        ({"searcher": Grid()}, "space of .*: a grid needs a list of values"),
        ({"scheduler": ASHA(), "metric": "test/accuracy"}, "scheduler: test/accuracy"),
        (
            {"scheduler": MedianStopping(), "metric": "test/loss"},
            "known only at the end of a trial; set scheduler to null",
        ),
        ({"arguments": ["--trainer.devices=2"]}, "trainer.devices must be 1"),
        ({"arguments": ["--trainer.num_nodes=2"]}, "trainer.num_nodes must be 1"),
        (
            {"optimizers": {"BBI": Arm(published={"lrx": 1.0})}},
            "no setting model.optimizer.lrx",
        ),
        (
            {"scheduler": PopulationBased(), "checkpoint": False},
            "checkpoint must be true",
        ),
        (
            {"scheduler": PopulationBased(), "space": {"data.batch_size": [5, 10]}},
            "data.batch_size cannot change while a trial runs",
        ),
    ],
    ids=label,
)
def test_what_cannot_work_is_refused_in_one_line(settings, named):
    with pytest.raises(UserError, match=named) as caught:
        jobs(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"metric": "lowest"}, "metric: lowest is not reported; .*best"),
        ({"scheduler": ASHA()}, "scheduler: best is known only at the end"),
        ({"optimizers": {"BFGS": Arm(space={"lr": [1]})}}, "BFGS"),
        ({"space": {"lrx": [1, 2]}}, r"no setting optimizers\.BBI\.lrx"),
    ],
    ids=label,
)
def test_what_cannot_work_with_a_study_is_refused(settings, named):
    defaults = {
        **{"study": STUDY, "metric": "best", "mode": "min"},
        "optimizers": {"BBI": Arm(space={"lr": "LogUniform(1e-5, 1e-3)"})},
    }
    with pytest.raises(UserError, match=named):
        jobs(**(defaults | settings))


def test_an_optimizer_without_known_ranges_needs_a_space(place):
    settings = {"optimizers": {"rms": Arm("torch.optim.Rprop")}}
    if "Rprop" in REGISTRY:
        pytest.skip("Rprop is registered")
    with pytest.raises(UserError, match="nothing to search for rms: give space"):
        jobs(**settings)


def test_refusing_writes_nothing(place):
    with pytest.raises(UserError):
        jobs(metric="nope")
    jobs()
    assert list(place.iterdir()) == []
