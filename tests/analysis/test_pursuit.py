"""SOMP, OMP and TextSpan against scikit-learn and against plain numpy in the full space."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp
from torch import Tensor

from residual_peft import ResiDualError
from residual_peft.analysis import omp, pursuit, somp, text_span
from tests.pairs import table

WIDTH, ATOMS, ROWS = 23, 57, 41


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit_rows(*shape: int, seed: int = 1) -> Tensor:
    return torch.nn.functional.normalize(drawn(*shape, seed=seed), dim=-1)


def in_frame(k: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Coordinates of unequal variance, correlated, mean zero; and orthonormal rows."""
    c = drawn(ROWS, k, seed=seed) @ drawn(k, k, seed=seed + 1)
    frame = torch.linalg.qr(drawn(WIDTH, k, seed=seed + 2))[0].T
    return c - c.mean(0), frame


def naive_somp(x: np.ndarray, atoms: np.ndarray, steps: int) -> tuple[list[int], list[float]]:
    rest, chosen, explained = x, [], []
    for _ in range(steps):
        chosen.append(int(np.abs(rest @ atoms.T).sum(0).argmax()))
        fit = np.linalg.lstsq(atoms[chosen].T, x.T, rcond=None)[0]
        rest = x - fit.T @ atoms[chosen]
        explained.append(1 - (rest**2).sum() / (x**2).sum())
    return chosen, explained


def naive_text_span(
    x: np.ndarray, atoms: np.ndarray, steps: int, rank: int
) -> tuple[list[int], list[float]]:
    _, _, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    atoms = atoms @ right[:rank].T @ right[:rank]
    rest, chosen, explained, total = x, [], [], (x - x.mean(0)).var(0).sum()
    for _ in range(steps):
        chosen.append(int((rest @ atoms.T).std(0).argmax()))
        v = atoms[chosen[-1]] / np.linalg.norm(atoms[chosen[-1]])
        before = rest.var(0).sum()
        rest = rest - np.outer(rest @ v, v)
        atoms = atoms - np.outer(atoms @ v, v)
        explained.append((explained or [0.0])[-1] + (before - rest.var(0).sum()) / total)
    return chosen, explained


@table("k", [1, 5, 12])
def test_somp_in_a_frame_is_somp_in_the_full_space(k: int) -> None:
    c, frame = in_frame(k)
    atoms = unit_rows(ATOMS, WIDTH)
    found = somp(c, atoms, 9, frame=frame)
    chosen, explained = naive_somp((c @ frame).numpy(), atoms.numpy(), 9)
    assert found.indices.tolist() == chosen
    np.testing.assert_allclose(found.explained, explained, rtol=1e-9)
    assert 0 < float(found.explained[0]) < float(found.explained[-1]) < 1
    fit = np.linalg.lstsq(atoms[chosen].T.numpy(), (c @ frame).T.numpy(), rcond=None)[0]
    assert found.coefficients is not None
    np.testing.assert_allclose(found.coefficients, fit.T, rtol=1e-7, atol=1e-9)
    full = somp(c @ frame, atoms, 9)
    assert full.indices.tolist() == chosen
    torch.testing.assert_close(full.explained, found.explained)


def test_atoms_outside_of_the_frame_count() -> None:
    # the first axis, by an atom that lies in it and by one that leaves it
    frame = torch.eye(3)[:2].double()
    atoms = torch.tensor([[0.6, 0.0, 0.8], [0.5, 0.75**0.5, 0.0]]).double()
    c = torch.tensor([[3.0, 0.0], [-3.0, 0.0]]).double()
    found = somp(c, atoms, 1, frame=frame)
    assert found.indices.tolist() == [0]
    assert float(found.explained[0]) == pytest.approx(0.36)  # not 1: 0.8 of it points elsewhere
    spanned = text_span(c, atoms, 1, frame=frame)
    assert spanned.indices.tolist() == [0]
    assert float(spanned.explained[0]) == pytest.approx(1)  # its part in the span of X


def test_somp_in_float32_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    c, frame = in_frame(7)
    atoms = unit_rows(ATOMS, WIDTH)
    exact = somp(c, atoms, 8, frame=frame)
    monkeypatch.setattr(pursuit, "_CHUNK", 6 * ATOMS)
    rough = somp(c.float(), atoms.float(), 8, frame=frame.float())
    assert rough.indices.tolist() == exact.indices.tolist()
    torch.testing.assert_close(rough.explained, exact.explained, rtol=1e-5, atol=1e-6)
    assert rough.coefficients is not None
    assert rough.coefficients.dtype == torch.float32
    half = somp(c.half(), atoms, 3, frame=frame)
    assert half.indices.tolist() == exact.indices.tolist()[:3]
    many = drawn(29, WIDTH, seed=9)
    assert omp(many, atoms, 4).indices.equal(torch.stack([omp(v, atoms, 4).indices for v in many]))


@table("steps", [1, 4, 11])
def test_omp_is_that_of_scikit_learn(steps: int) -> None:
    atoms, targets = unit_rows(ATOMS, WIDTH), drawn(19, WIDTH, seed=5)
    found = omp(targets, atoms, steps)
    oracle = orthogonal_mp(atoms.T.numpy(), targets.T.numpy(), n_nonzero_coefs=steps).T
    dense = torch.zeros(19, ATOMS).double()
    assert found.coefficients is not None
    dense.scatter_(1, found.indices, found.coefficients)
    np.testing.assert_allclose(dense, oracle, rtol=1e-8, atol=1e-10)
    rest = targets - dense @ atoms
    share = 1 - rest.square().sum(1) / targets.square().sum(1)
    torch.testing.assert_close(found.explained[:, -1], share)
    for row in range(19):  # the order, too: each support is the last one's and one more
        for count in range(1, steps + 1):
            fewer = orthogonal_mp(atoms.T.numpy(), targets[row].numpy(), n_nonzero_coefs=count)
            assert set(np.flatnonzero(fewer)) == set(found.indices[row, :count].tolist())


def test_somp_of_one_row_is_omp() -> None:
    atoms = unit_rows(ATOMS, WIDTH)
    for seed in range(5):
        v = drawn(WIDTH, seed=20 + seed)
        one, many = omp(v, atoms, 6), somp(v[None], atoms, 6)
        assert one.indices.equal(many.indices)
        torch.testing.assert_close(one.explained, many.explained)
        torch.testing.assert_close(one.coefficients, many.coefficients[0])


@table(("k", "rank"), [(12, 12), (12, 5), (4, 80)])
def test_text_span_is_that_of_the_full_space(k: int, rank: int) -> None:
    c, frame = in_frame(k)
    atoms = unit_rows(ATOMS, WIDTH)
    steps = min(k, rank)
    off_centre = c + drawn(k, seed=8)
    found = text_span(off_centre, atoms, steps, rank=rank, frame=frame)
    x = (off_centre @ frame).numpy()
    chosen, explained = naive_text_span(x, atoms.numpy(), steps, steps)
    assert found.indices.tolist() == chosen
    np.testing.assert_allclose(found.explained, explained, rtol=1e-8)
    assert found.coefficients is None
    full = text_span(off_centre @ frame, atoms, steps, rank=rank)
    assert full.indices.tolist() == chosen
    # the span is used up: what is left is what rank left out
    values = np.linalg.svd(c.numpy(), compute_uv=False) ** 2
    share = values[: min(k, rank)].sum() / values.sum()
    assert float(found.explained[-1]) == pytest.approx(share)
    longer = text_span(off_centre, atoms, steps + 7, rank=rank, frame=frame)
    assert longer.indices.tolist() == chosen


def test_rows_made_of_few_atoms_are_found_and_then_it_ends() -> None:
    atoms = torch.linalg.qr(drawn(WIDTH, 6))[0].T
    atoms = torch.cat([unit_rows(9, WIDTH) * 0 + atoms[5], atoms])  # nine times the last one
    weights = drawn(ROWS, 3, seed=3) * torch.tensor([5.0, 3.0, 1.0])
    found = somp(weights @ atoms[[10, 9, 0]], atoms, 12)
    assert found.indices.tolist() == [10, 9, 0]  # of equals the first; then nothing is left
    assert float(found.explained[-1]) == pytest.approx(1)
    one = omp(2 * atoms[11] - atoms[4], atoms, 5)
    assert one.indices.tolist() == [11, 0, -1, -1, -1]
    assert one.coefficients is not None
    torch.testing.assert_close(one.coefficients[:2], torch.tensor([2.0, -1.0]).double())
    assert one.coefficients[2:].eq(0).all()
    torch.testing.assert_close(one.explained, torch.tensor([0.8, 1, 1, 1, 1]).double())


def test_collinear_atoms_are_not_chosen_together() -> None:
    base = unit_rows(5, WIDTH)
    mixed = torch.nn.functional.normalize(drawn(8, 5) @ base, dim=1)  # 13 atoms in 5 dimensions
    atoms, x = torch.cat([base, mixed]), drawn(ROWS, WIDTH, seed=4)
    for found in (somp(x, atoms, 13), text_span(x, atoms, 13)):
        assert len(found.indices) == 5
        assert len(set(found.indices.tolist())) == 5
    span = torch.linalg.qr(base.T)[0]
    share = (x @ span).square().sum() / x.square().sum()
    torch.testing.assert_close(somp(x, atoms, 13).explained[-1], share)
    rows = omp(x, atoms, 13)
    assert rows.indices.ge(0).sum(1).eq(5).all()
    assert rows.coefficients is not None
    assert rows.coefficients.isfinite().all()


def test_nothing_to_explain() -> None:
    atoms = unit_rows(ATOMS, WIDTH)
    still = drawn(1, WIDTH).expand(ROWS, -1)
    assert somp(still * 0, atoms, 3).indices.tolist() == []
    assert somp(still * 0, atoms, 3).coefficients.shape == (ROWS, 0)
    assert text_span(still, atoms, 3).explained.shape == (0,)
    rows = omp(torch.stack([atoms[7], torch.zeros(WIDTH)]), atoms, 2)
    assert rows.indices.tolist() == [[7, -1], [-1, -1]]
    torch.testing.assert_close(rows.explained, torch.tensor([[1.0, 1], [0, 0]]).double())


def test_what_a_user_can_mend() -> None:
    atoms, x = unit_rows(ATOMS, WIDTH), drawn(ROWS, WIDTH)
    for method in (somp, omp, text_span):
        with pytest.raises(ResiDualError, match="wanted from 1 to 57 steps, one an atom, got 58"):
            method(x, atoms, 58)
        with pytest.raises(ResiDualError, match="got 0"):
            method(x, atoms, 0)
        with pytest.raises(ResiDualError, match=r"neither empty; got shapes \(0, 23\) and \(57"):
            method(x[:0], atoms, 2)
        with pytest.raises(ResiDualError, match=r"as wide as the atoms \(23\).* 22 and no frame"):
            method(x[:, 1:], atoms, 2)
        with pytest.raises(ResiDualError, match="NaN or infinite"):
            method(x.where(x < 1, torch.nan), atoms, 2)
    with pytest.raises(ResiDualError, match=r"a frame of shape \(4, 23\).* a frame of shape \(5, "):
        somp(x[:, :4], atoms, 2, frame=drawn(5, WIDTH))
    with pytest.raises(ResiDualError, match="at least one singular vector to span with, got rank"):
        text_span(x, atoms, 2, rank=0)
