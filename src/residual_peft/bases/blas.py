"""The threads of scipy's linear algebra, beside those of torch."""

from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


@cache
def _controller() -> Any:
    # by name: the BLAS of numpy's and scipy's wheels, and not the one that torch may carry
    return ThreadpoolController().select(prefix="libscipy_openblas")


def one_thread_in_scipy() -> Any:
    """Context in which scipy's and numpy's BLAS use one thread; torch's threads stay.

    For `scipy.optimize` over functions that torch evaluates: its vectors are too short to share
    between threads, and threads that wait for more take the cores from torch's products meanwhile,
    which made short fits three times slower.
    """
    return _controller().limit(limits=1)
