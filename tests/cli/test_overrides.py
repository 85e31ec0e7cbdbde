import pytest

from lightning_ecd.overrides import settings_of

KEY = "model.optimizer"


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "bbi.yaml").write_text("class_path: BBI\ninit_args: {lr: 0.2}\n")
    (tmp_path / "sgd.yaml").write_text("class_path: SGD\ninit_args: {momentum: 0.9}\n")
    file = tmp_path / "experiment.yaml"
    file.write_text(
        "model:\n  class_path: modules.Classifier\n"
        "  init_args:\n    optimizer: bbi.yaml\n"
    )
    return file


def test_one_choice_of_a_class_needs_no_second_parse(experiment):
    args = ["--config", str(experiment), "--model.optimizer.lr", "0.1"]
    assert settings_of(KEY, args) is None


def test_a_later_class_drops_what_came_before(experiment):
    args = ["--config", str(experiment), "--model.optimizer.lr=1"]
    args += ["--model.optimizer", "SGD", "--model.optimizer.momentum", "0.3"]
    assert settings_of(KEY, args) == ["--value=SGD", "--value.momentum=0.3"]


def test_a_file_counts_as_its_content(experiment):
    file = str(experiment.parent / "sgd.yaml")
    args = [f"--config={experiment}", f"--model.init_args.optimizer={file}"]
    assert settings_of(KEY, args) == [
        '--value={"class_path": "SGD", "init_args": {"momentum": 0.9}}'
    ]


def test_a_second_config_counts_like_a_flag(experiment):
    second = experiment.parent / "second.yaml"
    second.write_text("model: {init_args: {optimizer: {class_path: Adam}}}\n")
    args = ["-c", str(experiment), "-c", str(second)]
    assert settings_of(KEY, args) == ['--value={"class_path": "Adam"}']


def test_settings_without_a_class_keep_the_class(experiment):
    second = experiment.parent / "second.yaml"
    second.write_text("model: {init_args: {optimizer: {init_args: {lr: 3}}}}\n")
    assert settings_of(KEY, ["-c", str(experiment), "-c", str(second)]) is None


def test_keys_that_only_begin_alike_are_not_mixed_up():
    args = ["--data", "A", "--data", "B", "--database.x=1", "--data.batch_size", "3"]
    assert settings_of("data", args) == ["--value=B", "--value.batch_size=3"]
