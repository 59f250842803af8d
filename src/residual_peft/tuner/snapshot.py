"""What a model consists of, kept to put it back: a refused load leaves no trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Snapshot:
    """A model's modules as they are now: which parts they have, their attributes and hooks.

    Holds references alone. The values of tensors are not kept: whoever loads checks before the
    first value is written.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._states: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = [
            (module, type(module), dict(vars(module))) for module in modules
        ]
        self._contents: dict[int, tuple[Any, Any]] = {}
        for module in modules:
            for value in vars(module).values():
                if isinstance(value, dict | set | list) and id(value) not in self._contents:
                    self._contents[id(value)] = value, value.copy()
        self._trainable: list[tuple[Tensor, bool]] = [
            (tensor, tensor.requires_grad)
            for tensor in (*model.parameters(), *model.buffers())
            if tensor.is_leaf
        ]

    def restore(self) -> None:
        """Put every module back; what was put in since is forgotten."""
        for module, kind, state in self._states:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(state)
        for held, content in self._contents.values():  # in place: handles of hooks refer to them
            held.clear()
            if isinstance(held, list):
                held.extend(content)
            else:
                held.update(content)
        for tensor, trainable in self._trainable:
            tensor.requires_grad_(trainable)


@contextmanager
def unchanged_if_refused(model: nn.Module) -> Iterator[None]:
    """Put a model back as it was if the block fails, and let the error go on."""
    before = Snapshot(model)
    try:
        yield
    except BaseException:
        before.restore()
        raise
