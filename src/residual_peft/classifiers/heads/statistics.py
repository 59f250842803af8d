"""Sums that a ridge can be fitted from: added to, taken from, merged; never a row kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...bases import processes
from ...errors import ResiDualError
from .images import checked_batch

_TOLERANCE = 1e-9  # of a sum of squares, for what rounding makes of an exact 0
_NAMES = ("totals", "origin", "sums", "counts", "class_sums", "squares")


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


@dataclass
class HeadStatistics:
    """n, Σ c, Σ c cᵀ and per class n_k, Σ_k c of labelled features, in float64 (`method.md`, 8).

    Features count from an `origin`, the mean of the first batch, so that no digits are lost where
    means are large; it changes nothing else. Adding, forgetting and merging are exact to rounding.
    Memory: K² + C K numbers however many images, (C + 1) K² with `per_class`.

    They are of the labels: what comes of them equals `fit_ridge` with residual=False. What the text
    leaves of the labels changes with every class that is added, and needs rows.

    What they reveal: each class's mean and the covariance of all images in the basis. Of a class
    with one image, that image's own coordinates. They hold no pixels, but they are data.
    """

    columns: int  # K
    class_count: int  # C
    # whose features these are, such as the basis's fingerprint, "" where nobody says; statistics of
    # another source are refused
    source: str = ""
    # keep Σ_k c cᵀ of each class too, so that a class can be removed without its images
    per_class: bool = False
    rows: int = 0
    total: float = 0.0
    origin: Tensor = field(default_factory=_zeros)
    sums: Tensor = field(default_factory=_zeros)  # Σ w (c − origin) (K,)
    squares: Tensor = field(default_factory=_zeros)  # Σ w (c − origin)(c − origin)ᵀ (K, K)
    counts: Tensor = field(default_factory=_zeros)  # Σ w y (C,)
    class_sums: Tensor = field(default_factory=_zeros)  # Σ w y (c − origin) (C, K)
    class_squares: Tensor | None = None  # (C, K, K)

    def __post_init__(self) -> None:
        k, c = self.columns, self.class_count
        if k < 1 or c < 1:
            raise ResiDualError(f"wanted features and classes to count, got K = {k} and C = {c}.")
        if self.squares.ndim == 0:
            self.origin, self.sums, self.squares = _zeros(k), _zeros(k), _zeros(k, k)
            self.counts, self.class_sums = _zeros(c), _zeros(c, k)
            if self.per_class:
                self.class_squares = _zeros(c, k, k)

    def add(self, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Add images.

        Args:
            features: (B, K), of any float dtype.
            labels: class numbers (B,), or zeros and ones (B, C).
            weights: of the images (B,); 1 without.

        Raises:
            ResiDualError: shapes that do not suit, numbers that are not finite, unknown classes.
        """
        x, targets, w = checked_batch(features, labels, weights, self.columns, self.class_count)
        if len(x) == 0:
            return
        if self.rows == 0:
            self.origin = x.mean(0)
        self._change(x - self.origin, targets, w, 1)

    def forget(self, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Take images out that were added, with the weights they were added with."""
        x, targets, w = checked_batch(features, labels, weights, self.columns, self.class_count)
        x = x - self.origin
        counts, squares = w @ targets, w @ x.square()
        held = self.squares.diagonal()
        if len(x) > self.rows or (counts > self.counts + _TOLERANCE * self.counts).any():
            worst = int((counts - self.counts).argmax())
            raise ResiDualError(
                f"wanted to forget images that were added, got {len(x)} of {self.rows} and "
                f"{float(counts[worst]):g} of {float(self.counts[worst]):g} of class {worst}."
            )
        if (squares > held + _TOLERANCE * held.max()).any():
            raise ResiDualError(
                "wanted to forget images that were added, got others: their features are larger "
                "than all that was summed. Give the very rows, of the same basis."
            )
        if len(x) == self.rows:
            self.rows, self.total, self.squares = 0, 0.0, _zeros()
            self.__post_init__()  # rounding would leave what is no 0
        else:
            self._change(x, targets, w, -1)
            gone = self.counts.abs() <= _TOLERANCE * self.total  # rounding, where weights are not 1
            self.counts[gone], self.class_sums[gone] = 0.0, 0.0
            if self.class_squares is not None:
                self.class_squares[gone] = 0.0

    def add_class(self) -> int:
        """One more class, without images yet; its number."""
        self.counts = torch.cat([self.counts, _zeros(1)])
        self.class_sums = torch.cat([self.class_sums, _zeros(1, self.columns)])
        if self.class_squares is not None:
            more = _zeros(1, self.columns, self.columns)
            self.class_squares = torch.cat([self.class_squares, more])
        self.class_count += 1
        return self.class_count - 1

    def remove_class(self, class_index: int, features: Tensor | None = None) -> None:
        """Take out a class and its images; later classes move up by one.

        For one label per image; with several, take the column out of the labels. `features` are all
        images of the class, of weight 1; not needed with `per_class`.
        """
        if not 0 <= class_index < self.class_count or self.class_count == 1:
            raise ResiDualError(
                f"wanted one of {self.class_count} classes, and another to be left, got class "
                f"{class_index}."
            )
        count = float(self.counts[class_index])
        if abs(count) <= _TOLERANCE * self.total:  # its images are gone already
            count = 0.0
        elif abs(self.total - self.rows) > _TOLERANCE * self.total:
            raise ResiDualError(
                "wanted images of weight 1 to take a class out, got others: forget its images, "
                "with their weights."
            )
        if count == 0 and features is None:
            pass
        elif self.class_squares is not None:
            self.total -= count
            self.rows -= round(count)
            self.sums = self.sums - self.class_sums[class_index]
            self.squares = self.squares - self.class_squares[class_index]
        else:
            given = 0 if features is None else len(features)
            if features is None or given != count:
                raise ResiDualError(
                    f"wanted the {count:g} images of class {class_index} to take out with it, got "
                    f"{given}: without them it takes statistics with per_class=True (fit "
                    "--keep-statistics-per-class)."
                )
            self.forget(features, torch.full((given,), class_index))
        kept = torch.arange(self.class_count) != class_index
        self.counts, self.class_sums = self.counts[kept], self.class_sums[kept]
        if self.class_squares is not None:
            self.class_squares = self.class_squares[kept]
        self.class_count -= 1

    def merge(self, other: "HeadStatistics") -> None:
        """Add what another has seen; `other` stays. It must be of the same source and classes."""
        own, its = (
            (s.source, s.columns, s.class_count, s.class_squares is not None) for s in (self, other)
        )
        if own != its:
            raise ResiDualError(
                "wanted statistics of the same source, features and classes (source, K, C, "
                f"per_class), got {own} and {its}: sums of other models or bases mean nothing "
                "together."
            )
        if other.rows == 0:
            return
        if self.rows == 0:
            self.origin = other.origin.clone()
        moved = other.from_origin(self.origin)
        self.rows += moved.rows
        self.total += moved.total
        for name in self._sums():
            setattr(self, name, getattr(self, name) + getattr(moved, name))

    def from_origin(self, origin: Tensor) -> "HeadStatistics":
        """The same sums counted from another origin (K,)."""
        d = self.origin - origin
        outer = torch.outer(d, self.sums)
        classes = None
        if self.class_squares is not None:
            cross = d[:, None] * self.class_sums[:, None, :]
            own = self.counts[:, None, None] * torch.outer(d, d)
            classes = self.class_squares + cross + cross.mT + own
        return replace(
            self,
            origin=origin.clone(),
            sums=self.sums + self.total * d,
            squares=self.squares + outer + outer.mT + self.total * torch.outer(d, d),
            counts=self.counts.clone(),
            class_sums=self.class_sums + torch.outer(self.counts, d),
            class_squares=classes,
        )

    def across_processes(
        self, summed: Callable[[Tensor], Tensor] = processes.summed
    ) -> "HeadStatistics":
        """What all processes have seen, in each of them; every process has to call it.

        What is sent does not grow with images or processes. Processes without images take part.
        `summed` gives the sum of a tensor over all processes, and leaves the tensor.
        """
        count = summed(torch.tensor([self.rows, self.total], dtype=torch.float64))
        if float(count[0]) == 0:
            return self
        mean = summed(self.sums + self.total * self.origin) / count[1]
        moved = self.from_origin(mean)
        moved.rows, moved.total = round(float(count[0])), float(count[1])
        for name in self._sums():
            setattr(moved, name, summed(getattr(moved, name)))
        return moved

    def class_means(self) -> Tensor:
        """Mean features of each class's images (C, K); nan where a class has none."""
        return self.origin + self.class_sums / self.counts.unsqueeze(1)

    def state(self) -> dict[str, Tensor]:
        """Plain tensors in float64, of each symmetric matrix one half."""
        totals = torch.tensor([self.rows, self.total], dtype=torch.float64)
        sums = {name: getattr(self, name) for name in self._sums()}
        halves = {name: _half(sums[name]) for name in sums if name.endswith("squares")}
        return {"totals": totals, "origin": self.origin} | sums | halves

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], source: str = "") -> "HeadStatistics":
        """The statistics that `state` was taken of; their source is saved beside them."""
        sums = _checked_sums(state)
        rows, total = sums.pop("totals").tolist()
        k, c, per_class = len(sums["origin"]), len(sums["counts"]), "class_squares" in sums
        sums |= {name: _whole(sums[name], k) for name in sums if name.endswith("squares")}
        return cls(k, c, source, per_class, round(rows), total, **sums)

    def _sums(self) -> list[str]:
        names = ["sums", "squares", "counts", "class_sums"]
        return [*names, "class_squares"] if self.class_squares is not None else names

    def _change(self, x: Tensor, targets: Tensor, w: Tensor, sign: int) -> None:
        weighted = x * w.unsqueeze(1)
        self.rows += sign * len(x)
        self.total += sign * float(w.sum())
        self.sums = self.sums + sign * weighted.sum(0)
        self.squares.addmm_(x.mT, weighted, alpha=sign)
        self.counts = self.counts + sign * (w @ targets)
        self.class_sums.addmm_(targets.mT, weighted, alpha=sign)
        if self.class_squares is not None:
            for c in targets.any(0).nonzero().flatten().tolist():
                own = targets[:, c] > 0
                self.class_squares[c].addmm_(x[own].mT, weighted[own], alpha=sign)


def _half(square: Tensor) -> Tensor:
    """The lower triangle (..., K (K + 1) / 2) of symmetric matrices (..., K, K)."""
    rows, columns = torch.tril_indices(square.shape[-1], square.shape[-1])
    return square[..., rows, columns].contiguous()


def _whole(triangle: Tensor, columns: int) -> Tensor:
    """The symmetric matrices that `_half` was taken of."""
    rows, places = torch.tril_indices(columns, columns)
    square = torch.zeros(*triangle.shape[:-1], columns, columns, dtype=triangle.dtype)
    square[..., rows, places] = triangle
    square[..., places, rows] = triangle
    return square


def _checked_sums(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Saved statistics in float64, refused where one is missing, of a wrong shape or not finite."""
    missing = set(_NAMES) - set(state)
    if missing:
        raise ResiDualError(
            f"wanted a class head's statistics, got none of {', '.join(sorted(missing))}."
        )
    k, c = state["origin"].numel(), state["counts"].numel()
    triangle = k * (k + 1) // 2
    shapes = {"totals": (2,), "origin": (k,), "sums": (k,), "counts": (c,), "class_sums": (c, k)}
    shapes |= {"squares": (triangle,), "class_squares": (c, triangle)}
    for name, tensor in state.items():
        if tuple(tensor.shape) != shapes.get(name) or not torch.isfinite(tensor).all():
            raise ResiDualError(
                f"wanted finite {name} {shapes.get(name, '(none)')} in statistics of {k} features "
                f"and {c} classes, got {tuple(tensor.shape)}: they are damaged, or no statistics."
            )
    return {name: tensor.double() for name, tensor in state.items()}
