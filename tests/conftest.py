"""For pytest alone."""

from collections.abc import Iterator

import pytest

# a program that tests start, which takes arguments
collect_ignore = ["decoding_script.py"]


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """No capture is left for a later pass to find."""
    from residual_peft.towers.taps import _frames

    yield
    assert not _frames.open
    assert not _frames.finished
