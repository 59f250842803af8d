"""scipy's linear algebra on one thread, torch's threads as they were."""

import scipy.linalg  # noqa: F401  loads its BLAS
import torch
from threadpoolctl import threadpool_info

from residual_peft.bases.blas import one_thread_in_scipy


def scipys() -> list[int]:
    pools = threadpool_info()
    return [p["num_threads"] for p in pools if p["prefix"] == "libscipy_openblas"]


def test_one_thread_while_it_lasts() -> None:
    before, torchs = scipys(), torch.get_num_threads()
    with one_thread_in_scipy():
        assert set(scipys()) <= {1}
        assert torch.get_num_threads() == torchs
        with one_thread_in_scipy():  # a fit within a fit
            pass
        assert set(scipys()) <= {1}
    assert scipys() == before
