"""What a pass keeps lies in blocks of its own: the rows are those that were added, in order."""

import pytest
import torch

from residual_peft.bases.rows import Rows
from tests.pairs import table


@table("expected", [None, 10, 4, 1000])
@table("block", [2**26, 40])
def test_rows_are_those_of_a_plain_cat(expected, block):
    parts = [torch.randn(count, 2, 3) for count in (3, 1, 4, 2)]
    rows = Rows(expected, block)
    for part in parts:
        rows.add(part)
    assert len(rows) == 10
    found = rows.joined()
    assert torch.equal(found, torch.cat(parts))
    # what is given out holds on to no more than itself
    assert found.untyped_storage().nbytes() <= found.nbytes / 0.9
    assert len(rows) == 0


@table("block", [2**26, 40])
def test_drained_rows_come_in_the_parts_that_were_added(block):
    parts = [torch.randn(count, 2) for count in (3, 1, 0, 4)]
    rows = Rows(block=block)
    for part in parts:
        rows.add(part)
    for found, part in zip(rows.drained(), parts, strict=True):
        assert torch.equal(found, part)
    assert len(rows) == 0


def test_what_was_added_may_change_afterwards():
    rows, part = Rows(), torch.zeros(2, 1)
    rows.add(part)
    part += 1
    assert rows.joined().tolist() == [[0.0], [0.0]]


def test_numbers_of_several_kinds_take_the_one_that_holds_all():
    for first, second in ((torch.uint8, torch.int64), (torch.int64, torch.uint8)):
        for block in (2**26, 1):  # in one block, and in two
            rows = Rows(block=block)
            rows.add(torch.tensor([200 if first == torch.uint8 else 300], dtype=first))
            rows.add(torch.tensor([200 if second == torch.uint8 else 300], dtype=second))
            found = rows.joined()
            assert (found.dtype, int(found.sum())) == (torch.int64, 500)
    with pytest.raises(ValueError, match="there are no rows"):
        Rows().joined()
