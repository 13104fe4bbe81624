"""Invertible affine coupling.

Shape letters: N nodes, D features.
"""

import torch
from torch import Tensor, nn


class AffineCoupling(nn.Module):
    r"""A stack of affine couplings (RealNVP: Dinh et al., 2017, arXiv:1605.08803) with an exact inverse.

    Each layer keeps one half a of the features and maps the other, b, to :math:`b \exp(s(a)) + t(a)`, with
    :math:`|s| < 1` by tanh; layers alternate the halves. It starts as the identity.

    Args:
        channels: D, even.
        num_layers: couplings in the stack.

    Raises:
        ValueError: if ``channels`` is odd.
    """

    def __init__(self, channels: int, num_layers: int = 2) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"coupling splits the features in halves: channels={channels} must be even")
        half = channels // 2
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            last = nn.Linear(channels, channels)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.layers.append(nn.Sequential(nn.Linear(half, channels), nn.ReLU(), last))

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] to [N, D]."""
        with torch.autocast(x.device.type, enabled=False):
            kept, mapped = x.float().chunk(2, dim=-1)
            for layer in self.layers:
                log_scale, shift = layer(kept).chunk(2, dim=-1)
                kept, mapped = mapped * torch.tanh(log_scale).exp() + shift, kept
            return torch.cat([kept, mapped], dim=-1)

    def inverse(self, y: Tensor) -> Tensor:
        """[N, D] to the [N, D] that :meth:`forward` maps to it; in float32, whatever autocast says."""
        with torch.autocast(y.device.type, enabled=False):
            kept, mapped = y.float().chunk(2, dim=-1)
            for layer in reversed(self.layers):
                log_scale, shift = layer(mapped).chunk(2, dim=-1)
                kept, mapped = mapped, (kept - shift) * torch.tanh(-log_scale).exp()
            return torch.cat([kept, mapped], dim=-1)

    def log_determinant(self, x: Tensor) -> Tensor:
        """Logarithm of the determinant of the Jacobian at each row: [N, D] to [N]."""
        kept, mapped = x.chunk(2, dim=-1)
        total = torch.zeros(len(x), device=x.device, dtype=x.dtype)
        for layer in self.layers:
            log_scale, shift = layer(kept).chunk(2, dim=-1)
            total = total + torch.tanh(log_scale).sum(dim=-1)
            kept, mapped = mapped * torch.tanh(log_scale).exp() + shift, kept
        return total
