"""The experiments on texts, with a text of the test's own."""

import pytest

from tests.cli.conftest import ROOT, SHORT

SMALL = ["--data.batch_size=2", "--data.window=5", "--trainer.max_steps=1"]
TEXTS = {
    "entropyadam_char_lstm": [],
    "entropysgd_word_lstm": ["--data.val_path=null", "--data.test_path=null"]
    + ["--model.network.width=20", "--model.network.vocabulary=50"],
}


@pytest.mark.parametrize("name", TEXTS)
def test_an_experiment_reads_the_file_it_is_given(name, cli, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat\nand sang\n" * 60)
    file = ROOT / "configs" / "experiment" / f"{name}.yaml"
    flags = ["--data.path=text.txt", *SMALL, *TEXTS[name]]
    result = cli("fit", "--config", file, *SHORT, *flags)
    assert (result.code, result.err) == (0, "")
    assert "test/loss" in result.out


def test_a_missing_text_is_one_line(cli):
    file = ROOT / "configs" / "experiment" / "entropyadam_char_lstm.yaml"
    result = cli("fit", "--config", file, *SHORT)
    assert result.code == 2
    assert "data/war_and_peace.txt cannot be read" in result.error
