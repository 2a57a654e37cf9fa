"""Modules for the table in networks.py: dropout as torchvision and timm write it, small and without either package.

Images have shape (batch, 2, 6, 6), tokens (batch, 5, 8); the output has shape (batch, 3).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network_modules import P


class TorchvisionDropBlock(nn.Module):
    """A mark for each block that fits into the map, grown to blocks; normalised over the whole batch."""

    def __init__(self, p: float = 0.2, block: int = 3, dims: int = 2, inplace: bool = False) -> None:
        super().__init__()
        self.p, self.block, self.dims, self.inplace = p, block, dims, inplace

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        rows, channels, *sizes = x.size()
        block = min(self.block, *sizes)
        places = [size - block + 1 for size in sizes]
        gamma = self.p * _product(sizes) / (block**self.dims * _product(places))
        noise = torch.empty((rows, channels, *places), dtype=x.dtype, device=x.device)
        noise.bernoulli_(gamma)
        noise = F.pad(noise, [block // 2] * (2 * self.dims), value=0)
        pool = F.max_pool2d if self.dims == 2 else F.max_pool3d
        noise = 1 - pool(noise, stride=(1,) * self.dims, kernel_size=(block,) * self.dims, padding=block // 2)
        factor = noise.numel() / (1e-6 + noise.sum())
        return x.mul_(noise).mul_(factor) if self.inplace else x * noise * factor


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result = result * size
    return result


class TimmDropBlock(nn.Module):
    """timm's since 1.0.23: marks at every place, one mask for all channels if coupled.

    `form`: "scaled" by the kept share of the whole batch, "unscaled", or with Gaussian "noise" for what is dropped.
    """

    def __init__(self, form: str = "scaled", block: int = 3, couple: bool = True, inplace: bool = False) -> None:
        super().__init__()
        self.form, self.block, self.couple, self.inplace = form, block, couple, inplace

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        rows, channels, high, wide = x.shape
        kh, kw = min(self.block, high), min(self.block, wide)
        gamma = float(0.2 * high * wide) / float(kh * kw) / float((high - kh + 1) * (wide - kw + 1))
        shape = (rows, 1 if self.couple else channels, high, wide)
        with torch.no_grad():
            dropped = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(gamma)
            dropped = F.max_pool2d(dropped, kernel_size=(kh, kw), stride=1, padding=(kh // 2, kw // 2))
            if kh % 2 == 0 or kw % 2 == 0:
                dropped = dropped[..., (kh + 1) % 2 :, (kw + 1) % 2 :]
            kept = 1.0 - dropped
            noise = torch.empty_like(kept).normal_().mul_(dropped) if self.form == "noise" else None
            if self.form == "scaled":
                kept.mul_((kept.numel() / kept.to(dtype=torch.float32).sum().add(1e-7)).to(x.dtype))
        x = x.mul_(kept) if self.inplace else x * kept
        return x if noise is None else x + noise


class OldTimmDropBlock(nn.Module):
    """timm's before: thresholds of uniform numbers inside a frame, or anywhere if `fast`; `batchwise`: for all rows."""

    def __init__(self, fast: bool = False, batchwise: bool = False, noise: bool = False) -> None:
        super().__init__()
        self.fast, self.batchwise, self.noise = fast, batchwise, noise

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        _, channels, high, wide = x.shape
        block = min(3, wide, high)
        gamma = 0.2 * high * wide / block**2 / ((wide - block + 1) * (high - block + 1))
        shape = (1, channels, high, wide)
        if self.fast:
            drawn = torch.rand(shape, dtype=x.dtype, device=x.device) if self.batchwise else torch.rand_like(x)
            dropped = (drawn < gamma).to(x.dtype)
            mask = 1 - F.max_pool2d(dropped, kernel_size=block, stride=1, padding=block // 2)
        else:
            across, down = torch.meshgrid(torch.arange(wide), torch.arange(high), indexing="ij")
            inside = (across >= block // 2) & (across < wide - (block - 1) // 2)
            inside &= (down >= block // 2) & (down < high - (block - 1) // 2)
            inside = inside.reshape(1, 1, high, wide).to(dtype=x.dtype)
            drawn = torch.rand(shape, dtype=x.dtype, device=x.device) if self.batchwise else torch.rand_like(x)
            mask = ((2 - gamma - inside + drawn) >= 1).to(dtype=x.dtype)
            mask = -F.max_pool2d(-mask, kernel_size=block, stride=1, padding=block // 2)
        if self.noise:
            normal = torch.randn(shape, dtype=x.dtype, device=x.device) if self.batchwise else torch.randn_like(x)
            return x * mask + normal * (1 - mask)
        return x * mask * (mask.numel() / mask.to(dtype=torch.float32).sum().add(1e-7)).to(x.dtype)


class PatchDropout(nn.Module):
    """timm's: keeps the first token and some of the others, drawn without replacement by ranking random numbers.

    `form`: "ranks" (argsort of normal numbers), "ordered" (the same, kept tokens in their order), "masking" (argsort
    of uniform numbers, as masked autoencoders do) or "top" (the largest of normal numbers).
    """

    def __init__(self, form: str = "ranks", p: float = 0.5) -> None:
        super().__init__()
        self.form, self.p = form, p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        first, x = x[:, :1], x[:, 1:]
        rows, length = x.shape[:2]
        count = max(1, int(length * (1.0 - self.p)))
        if self.form == "top":
            kept = torch.randn(rows, length, device=x.device).topk(count, dim=-1).indices
        else:
            draw = torch.rand if self.form == "masking" else torch.randn
            kept = torch.argsort(draw(rows, length, device=x.device), dim=-1)[:, :count]
        if self.form == "ordered":
            kept = kept.sort(dim=-1)[0]
        x = x.gather(1, kept.unsqueeze(-1).expand((-1, -1, *x.shape[2:])))
        return torch.cat((first, x), dim=1)


class VisionAttention(nn.Module):
    """timm's: a Dropout module whose rate goes to the fused attention, or which is called on the weights."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv, self.attn_drop = nn.Linear(8, 24), nn.Dropout(P)
        self.proj, self.proj_drop = nn.Linear(8, 8), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(x).reshape(rows, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            weights = (q * 4**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
            x = self.attn_drop(weights) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(rows, length, width)))


def token_classifier(*middle: nn.Module) -> nn.Module:
    """Input (batch, 5, 8); Linear - `middle` - mixes over the tokens - Linear."""
    return nn.Sequential(nn.Linear(8, 8), *middle, Pooled())


class Pooled(nn.Module):
    """Neither linear nor blind to the order of the tokens; any number of them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None]
        return self.head(self.norm(torch.tanh(x + 0.1 * places).mean(1)))


def mobile_head() -> nn.Module:
    """MobileNetV3's and EfficientNet's classifier: dropout in place between two linear layers, behind BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.Hardswish(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 8),
        nn.Hardswish(inplace=True),
        nn.Dropout(p=0.2, inplace=True),
        nn.Linear(8, 3),
    )
