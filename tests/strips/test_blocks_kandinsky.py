"""What only KVAE and Kandinsky 6's super-resolution have: parts of their own, each of which is checked."""

import pytest

from .families import KANDINSKY6_SR, KVAE, Family


@pytest.mark.parametrize("family", [KANDINSKY6_SR, KVAE], ids=lambda family: family.model)
def test_other_parts_run_by_their_own_code(family: Family) -> None:
    model = family.made()
    model.decoder.conv_in.conv.stride = (1, 2, 2)
    assert family.stages.describe(model) is None
