"""All pairs of a ViT-L's heads by the normalized spectral cosine, against a loop over pairs.

    python benchmarks/similarity.py        # writes similarity.json beside itself; a few minutes

384 heads × 64 directions in 768 dimensions: random orthonormal directions, eigenvalues that decay
as those of heads do, float64, one thread and two. The loop takes one pair at a time, with one
argmax over the whole matrix per direction; it runs on a sample of the pairs, and its scores on them
must be the same. `cpu_seconds` are those of all threads: other programs on the machine add less to
them than to `seconds`; `load` is how many ran on average while measuring, this one among them.
"""

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from residual_peft import SpectralBasis
from residual_peft.analysis import spectral_similarity
from residual_peft.bases.fingerprint import Fingerprint
from residual_peft.hub.files import write_json
from residual_peft.towers.units import Unit

LAYERS, HEADS, DIRECTIONS, WIDTH = 24, 16, 64, 768
SAMPLE = 500
SPECTRA = {
    "0.9^i": 0.9 ** torch.arange(DIRECTIONS).double(),
    "1/i": 1 / torch.arange(1, DIRECTIONS + 1).double(),
}


def basis(eigenvalues: Tensor) -> SpectralBasis:
    """Random directions for every head."""
    torch.manual_seed(0)
    count = LAYERS * HEADS
    frames = torch.linalg.qr(torch.randn(count, WIDTH, DIRECTIONS, dtype=torch.float64))[0].mT
    jitter = torch.rand(count, DIRECTIONS).double() + 0.5
    return SpectralBasis(
        units=tuple(Unit("head", layer, head) for layer in range(LAYERS) for head in range(HEADS)),
        means=torch.zeros(count, WIDTH).double(),
        components=list(frames.contiguous()),
        eigenvalues=list((eigenvalues * jitter).sort(dim=1, descending=True).values),
        total_variance=torch.ones(count).double(),
        num_samples=50_000,
        source="data",
        fingerprint=Fingerprint("random", "CLIP", WIDTH, {}),
    )


def plain(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> float:
    """One pair, as the definition says."""
    s = (x @ y.T).abs() * torch.outer(a, b)
    count = min(s.shape)
    taken = torch.zeros(count, dtype=s.dtype)
    for step in range(count):
        row, column = divmod(int(s.argmax()), s.shape[1])
        taken[step] = s[row, column]
        s[row] = -1
        s[:, column] = -1
    return float(taken.norm() / (a[:count] * b[:count]).norm())


def measure(eigenvalues: Tensor, weighted: bool, threads: int) -> dict[str, Any]:
    """Seconds for all pairs, and for the loop by its time per pair."""
    torch.set_num_threads(threads)
    found = basis(eigenvalues)
    start, cpu = time.perf_counter(), time.process_time()
    matrix = spectral_similarity(found, weighted=weighted)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    count = len(found.units)
    pairs = torch.combinations(torch.arange(count))
    sample = pairs[torch.randperm(len(pairs))[:SAMPLE]].tolist()
    ones = torch.ones(DIRECTIONS).double()
    start = time.perf_counter()
    scores = []
    for i, j in sample:
        a, b = (found.eigenvalues[k] if weighted else ones for k in (i, j))
        scores.append(plain(found.components[i], a, found.components[j], b))
    loop = (time.perf_counter() - start) / SAMPLE
    away = max(
        abs(float(matrix.values[i, j]) - s) for (i, j), s in zip(sample, scores, strict=True)
    )
    assert away < 1e-12, away
    return {
        "pairs": len(pairs),
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "loop_seconds": round(loop * len(pairs), 1),
        "loop_pairs_measured": SAMPLE,
        "times_faster": round(loop * len(pairs) / seconds, 1),
        "largest_difference": away,
    }


def main() -> None:
    """Measure weighted by two spectra, and unweighted."""
    results: dict[str, Any] = {
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        },
        "heads": LAYERS * HEADS,
        "directions": DIRECTIONS,
        "width": WIDTH,
    }
    cases = {f"weighted, eigenvalues {name}": (SPECTRA[name], True) for name in SPECTRA}
    cases["unweighted"] = (SPECTRA["1/i"], False)
    for name, case in cases.items():
        results[name] = [measure(*case, threads) for threads in (1, 2)]
    write_json(Path(__file__).with_suffix(".json"), results)
    for name in cases:
        print(name, results[name])


if __name__ == "__main__":
    main()
