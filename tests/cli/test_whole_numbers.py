"""Numbers of batches, which differ from fractions of all batches."""

import pytest

from lightning_ecd.parser import Parser, whole_numbers_first


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1.0", 1.0), ("null", None)])
def test_one_is_an_integer_in_whatever_order_its_types_are(text, value):
    parser = Parser()
    # as the hint of limit_train_batches is after `import ray`
    parser.add_argument("--limit", type=float | int | None)
    whole_numbers_first(parser)
    found = parser.parse_args([f"--limit={text}"]).limit
    assert (found, type(found)) == (value, type(value))
