"""DSFormer (SFormer): which kernel sees a pixel, and which tokens it attends to, by selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvad.errors import ConfigError

__all__ = ["DSFormer", "DSFormerSize", "KernelSelection", "TokenSelection", "size_of"]

QkNorm = Literal["token", "channel", "none"]


@dataclass(frozen=True)
class DSFormerSize:
    """How large the network is, by default as in the paper.

    Parameters
    ----------
    dim, depth, heads, groups : int, default=128, 6, 8, 4
        dim is a multiple of heads x groups and of 2; a token is a pixel and one of the groups.
    token : int, default=2
        Side of a token in pixels.
    kept : float, default=0.8
        Share of the tokens that each attends to, in (0, 1].
    qk_norm : {"token", "channel", "none"}, default="token"
        Axis along which queries and keys have length one: that of tokens in the public code,
        though then the similarities depend on how many tokens there are.
    kernels_at : tuple of int, default=(0, 3)
        Blocks before which kernels are selected, by one shared module.
    """

    dim: int = 128
    depth: int = 6
    heads: int = 8
    groups: int = 4
    token: int = 2
    kept: float = 0.8
    qk_norm: QkNorm = "token"
    kernels_at: tuple[int, ...] = (0, 3)

    def __post_init__(self) -> None:
        if self.dim % (self.heads * self.groups) or self.dim % 2:
            raise ConfigError(
                f"dim {self.dim} must be a multiple of 2 and of heads {self.heads} x groups "
                f"{self.groups}"
            )
        if not 0 < self.kept <= 1 or self.qk_norm not in ("token", "channel", "none"):
            raise ConfigError(
                f"kept is {self.kept}: above 0, at most 1; qk_norm {self.qk_norm!r}: token, "
                "channel or none"
            )


_SIZES = {"small": DSFormerSize(dim=32, depth=2, heads=4, groups=2), "paper": DSFormerSize()}


def size_of(size: str | DSFormerSize) -> DSFormerSize:
    """A size by its name, small or paper; raises `ConfigError` for another name.

    >>> size_of("small").dim
    32
    """
    if isinstance(size, DSFormerSize):
        return size
    if size not in _SIZES:
        raise ConfigError(f"size is {size!r}; choose from {', '.join(_SIZES)}")
    return _SIZES[size]


class DSFormer(nn.Module):
    """Logits of the class of the pixel in the middle of each patch.

    Parameters
    ----------
    bands, classes : int
        The paper has 30 principal components as bands.
    size : DSFormerSize, default=DSFormerSize()

    Examples
    --------
    >>> DSFormer(30, 9)(torch.zeros(2, 30, 10, 10)).shape
    torch.Size([2, 9])

    Source: Xu et al., Neural Networks 187, 2025, and its code.
    """

    def __init__(self, bands: int, classes: int, size: DSFormerSize | None = None) -> None:
        super().__init__()
        size = DSFormerSize() if size is None else size
        self.size = size
        self.first = nn.Conv2d(bands, size.dim, 3, padding=1)
        self.embed = nn.Conv2d(size.dim, size.dim, size.token, size.token)
        self.embed_norm = nn.LayerNorm(size.dim)
        self.kernels = _KernelBlock(size.dim)
        self.tokens = nn.ModuleList(_TokenBlock(size) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.dim)
        self.head = nn.Linear(size.dim, classes)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (b, bands, p, p), p a multiple of the token's side, to logits (b, classes)."""
        image = _over_channels(self.embed_norm, self.embed(self.first(patches)))
        for place, block in enumerate(self.tokens):
            if place in self.size.kernels_at:
                image = self.kernels(image)
            image = block(image)
        logits: Tensor = self.head(self.norm(image.mean((2, 3))))
        return logits


class KernelSelection(nn.Module):
    """Weighs, per pixel and channel, what a field of 3 and one of 11 pixels see.

    >>> KernelSelection(8).eval()(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(dim // 16, 32)
        self.near = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.far = nn.Conv2d(dim, dim, 5, padding=4, dilation=2, groups=dim)
        self.narrow = nn.ModuleList(nn.Conv2d(dim, dim // 2, 1) for _ in range(2))
        self.where = nn.Conv2d(2, 2, 1)
        self.squeeze = nn.Conv2d(dim, hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.which = nn.Conv2d(hidden, dim, 1, bias=False)
        self.widen = nn.Conv2d(dim // 2, dim, 1)

    def gates(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Of both fields (b, dim, h, w): a gate for places, and one for channels.

        Shapes (b, 2, 1, h, w), in 0..1, and (b, 2, dim / 2, 1, 1), which sums to 1 over the fields.
        """
        seen = torch.cat([both.mean(1, keepdim=True), both.amax(1, keepdim=True)], 1)
        mean = F.relu(self.norm(self.squeeze(both.mean((2, 3), keepdim=True))))
        which = self.which(mean).reshape(len(both), 2, -1, 1, 1).softmax(1)
        return torch.sigmoid(self.where(seen))[:, :, None], which

    def forward(self, image: Tensor) -> Tensor:
        """(b, dim, h, w) to the same shape."""
        near = self.near(image)
        fields = [self.narrow[0](near), self.narrow[1](self.far(near))]
        where, which = self.gates(torch.cat(fields, 1))
        mixed = (torch.stack(fields, 1) * which * where).sum(1)
        return image * torch.sigmoid(self.widen(mixed))


class TokenSelection(nn.Module):
    """Attention of each token, a pixel's group of channels, to the share `kept` most like it.

    >>> size = DSFormerSize(dim=32, groups=2)
    >>> TokenSelection(size)(torch.zeros(1, 32, 5, 5)).shape
    torch.Size([1, 32, 5, 5])
    """

    def __init__(self, size: DSFormerSize) -> None:
        super().__init__()
        self.size = size
        groups = size.groups
        # the same for each channel of a group
        self.qkv = nn.Sequential(
            nn.Conv2d(groups, 3 * groups, 1, bias=False),
            nn.Conv2d(3 * groups, 3 * groups, 3, padding=1, groups=3 * groups, bias=False),
        )
        self.temperature = nn.Parameter(torch.ones(size.heads, 1, 1))
        self.out = nn.Conv2d(size.dim, size.dim, 1, bias=False)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Of (b, heads, c, n) queries and keys: (b, heads, n, n), rows that sum to one."""
        if self.size.qk_norm != "none":
            axis = 3 if self.size.qk_norm == "token" else 2
            query, key = F.normalize(query, dim=axis), F.normalize(key, dim=axis)
        likeness = query.transpose(2, 3) @ key * self.temperature
        kept = max(1, int(self.size.kept * likeness.shape[3]))
        best = likeness.topk(kept, dim=3)
        chosen = torch.full_like(likeness, float("-inf")).scatter(3, best.indices, best.values)
        return chosen.softmax(3)

    def forward(self, image: Tensor) -> Tensor:
        """(b, dim, h, w) to the same shape."""
        count, dim, height, width = image.shape
        groups, heads = self.size.groups, self.size.heads
        grouped = image.reshape(count, groups, -1, height, width).transpose(1, 2)
        three = self.qkv(grouped.reshape(-1, groups, height, width))
        query, key, value = three.reshape(count, heads, -1, 3, groups * height * width).unbind(3)
        found = value @ self.weights(query, key).transpose(2, 3)
        found = found.reshape(count, -1, groups, height * width).transpose(1, 2)
        mixed: Tensor = self.out(found.reshape(count, dim, height, width))
        return mixed


class _KernelBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in range(2))
        self.scales = nn.Parameter(torch.full((2, 1, dim, 1, 1), 0.01))
        self.select = nn.Sequential(
            nn.Conv2d(dim, dim, 1), nn.GELU(), KernelSelection(dim), nn.Conv2d(dim, dim, 1)
        )
        self.layers = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        flat = self.norms[0](image)
        image = image + self.scales[0] * (flat + self.select(flat))
        changed: Tensor = image + self.scales[1] * self.layers(self.norms[1](image))
        return changed


class _TokenBlock(nn.Module):
    def __init__(self, size: DSFormerSize, hidden: int = 180) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(size.dim) for _ in range(2))
        self.attend = TokenSelection(size)
        self.layers = nn.Sequential(
            nn.Conv2d(size.dim, hidden, 1, bias=False),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, size.dim, 1, bias=False),
        )

    def forward(self, image: Tensor) -> Tensor:
        image = image + self.attend(_over_channels(self.norms[0], image))
        changed: Tensor = image + self.layers(_over_channels(self.norms[1], image))
        return changed


def _over_channels(norm: nn.Module, image: Tensor) -> Tensor:
    """A LayerNorm over the channels of (b, c, h, w)."""
    normed: Tensor = norm(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return normed
