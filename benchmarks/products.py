"""The matrix products of a step, and the same products alone: the arithmetic that no implementation can leave out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Where the two factors are among the arguments.
FACTORS = {
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    aten.mv.default: (0, 1),
    aten._grouped_mm.default: (0, 1),
}


class Product(NamedTuple):
    """One call that multiplies matrices, with random numbers in place of the real ones."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    flops: int


class ProductRecorder(TorchDispatchMode):
    """Collects the matrix products that run within it, forward and backward, in :attr:`products`."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FACTORS:
            first, second = (args[position] for position in FACTORS[func])
            # Holds for grouped products too: of all rows (or columns), each meets one matrix of the group.
            flops = 2 * first.numel() * (second.shape[-1] if second.dim() > 1 else 1)
            copies = tuple(map(_look_alike, args)), {key: _look_alike(value) for key, value in kwargs.items()}
            self.products.append(Product(func, *copies, flops))
        return func(*args, **kwargs)


def multiply(products: list[Product]) -> None:
    """Do nothing but the products, in their order."""
    with torch.no_grad():
        for product in products:
            product.call(*product.args, **product.kwargs)


def _look_alike(value: Any) -> Any:
    """Random numbers in the shape, layout and type of a tensor; offsets of groups and plain values as they are."""
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        return value.clone()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    numbers = torch.randn(extent if value.numel() else 0, device=value.device, dtype=value.dtype)
    return numbers.as_strided(value.shape, value.stride())
