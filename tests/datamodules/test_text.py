import pytest
import torch

from datamodules import Text
from lightning_ecd.errors import UserError

LETTERS = "abcdefghij"


@pytest.fixture
def text(tmp_path):
    """A file of 1000 letters in a scrambled order."""
    draws = torch.randint(10, (1000,), generator=torch.Generator().manual_seed(0))
    content = LETTERS + "".join(LETTERS[i] for i in draws[10:])
    (tmp_path / "text.txt").write_text(content)
    return str(tmp_path / "text.txt"), content


def loaded(path, **settings):
    data = Text(path, **({"batch_size": 4, "window": 10} | settings))
    data.setup()
    return data


def letters(tensor):
    return "".join(LETTERS[i] for i in tensor.flatten())


def test_rows_continue_those_of_the_batch_before(text):
    path, content = text
    batches = list(loaded(path).train_dataloader())
    streams = ["".join(letters(x[b]) for x, _ in batches) for b in range(4)]
    length = (800 - 1) // 40 * 10
    assert streams == [content[b * length : (b + 1) * length] for b in range(4)]
    following = ["".join(letters(y[b]) for _, y in batches) for b in range(4)]
    expected = [content[b * length + 1 : (b + 1) * length + 1] for b in range(4)]
    assert following == expected


def test_mini_batches_are_successive_pieces(text):
    path, _ = text
    one = [x for x, _ in loaded(path).train_dataloader()]
    several = list(loaded(path, minibatches=3).train_dataloader())
    assert len(one) == 19 and len(several) == 6
    # Streams are of the pieces that fill batches, so that their ends differ
    own = loaded(path, minibatches=3)
    length = 18 * 10
    for i, (x, _) in enumerate(several):
        for k, part in enumerate(x.view(3, 4, 10)):
            start = (3 * i + k) * 10
            for b, row in enumerate(part):
                first = b * length + start
                assert torch.equal(row, own._parts["train"][first : first + 10])


def test_every_rank_has_streams_of_its_own(text):
    path, content = text
    seen = []
    for rank in range(2):
        data = loaded(path, batch_size=2)
        data.trainer = type("T", (), {"global_rank": rank, "world_size": 2})()
        data.trainer.strategy = type("S", (), {"root_device": torch.device("cpu")})()
        seen.append([x for x, _ in data.train_dataloader()])
    together = [torch.cat(pair) for pair in zip(*seen, strict=True)]
    alone = [x for x, _ in loaded(path).train_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_the_text_is_cut_into_four_fifths_and_two_tenths(text):
    path, content = text
    data = loaded(path)
    assert data.classes == 10
    assert [letters(data._parts[p]) for p in ("train", "val", "test")] == [
        *(content[:800], content[800:900], content[900:])
    ]
    [*batches] = data.test_dataloader()
    assert "".join(letters(x) for x, _ in batches) == content[900:990]


def test_words_and_ends_of_lines_are_tokens(tmp_path):
    for name, content in (("a", "the cat sat\nthe end\n"), ("b", "a cat\n")):
        (tmp_path / name).write_text(content)
    files = {name: str(tmp_path / "b") for name in ("val_path", "test_path")}
    data = Text(str(tmp_path / "a"), unit="words", batch_size=1, window=2, **files)
    data.setup()
    assert data.vocabulary == {
        word: i for i, word in enumerate(["<eos>", "a", "cat", "end", "sat", "the"])
    }
    assert data._parts["train"].tolist() == [5, 2, 4, 0, 5, 3, 0]
    assert data._parts["val"].tolist() == data._parts["test"].tolist() == [1, 2, 0]


def test_problems_of_the_text_are_named(text, tmp_path):
    with pytest.raises(UserError, match="nowhere.txt cannot be read"):
        Text("nowhere.txt").setup()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="name a text file in UTF-8"):
        Text(str(tmp_path / "bytes")).setup()
    with pytest.raises(UserError, match="do not fill a batch.*data.batch_size"):
        loaded(text[0], batch_size=100).train_dataloader()
    (tmp_path / "short").write_text("abc")
    with pytest.raises(UserError, match="the 0 tokens for val do not fill"):
        loaded(str(tmp_path / "short")).val_dataloader()


@pytest.mark.parametrize("name", ["batch_size", "window", "eval_batch_size", "unit"])
def test_bad_arguments_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        Text("a.txt", **{name: "bytes" if name == "unit" else 0})
