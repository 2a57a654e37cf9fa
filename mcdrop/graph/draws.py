"""The four functions through which noise enters a captured program.

A program's only random nodes are calls of `noise`; the others apply a draw to activations:

    noise(index, sizes)          the draw of site `index`: kept units scaled, or uniform or normal numbers
    scale(x, noise)              dropout: x * noise
    alpha_scale(x, noise, p)     alpha dropout (Klambauer et al. 2017, arXiv 1706.02515): dropped units take the
                                 saturation value of SELU, then an affine map restores mean and variance
    bernoulli(uniform, probs)    1 where uniform >= 1 - probs: a hand-written mask with a tensor of rates

In the graph that `torch.export` traces they stand as operators of the library `mcdrop`, so that the tracer treats
them as opaque; in a finished `Program` they are the plain functions below.
"""

import torch
from torch import Tensor

__all__ = ["OPERATORS", "alpha_affine", "alpha_scale", "bernoulli", "draw_operators", "noise", "scale"]

_SELU_SATURATION = 1.7580993408473766  # alpha * lambda of SELU, the constant of ATen's alpha_dropout

_library = torch.library.Library("mcdrop", "DEF")
_library.define("noise(int index, SymInt[] sizes) -> Tensor")
_library.define("scale(Tensor x, Tensor noise) -> Tensor")
_library.define("alpha_scale(Tensor x, Tensor noise, float p) -> Tensor")
_library.define("bernoulli(Tensor uniform, Tensor probs) -> Tensor")
torch.library.register_fake("mcdrop::noise", lambda index, sizes: torch.empty(sizes), lib=_library)
torch.library.register_fake("mcdrop::scale", lambda x, noise: torch.empty_like(x), lib=_library)
torch.library.register_fake("mcdrop::alpha_scale", lambda x, noise, p: torch.empty_like(x), lib=_library)
torch.library.register_fake("mcdrop::bernoulli", lambda uniform, probs: torch.empty_like(probs), lib=_library)
draw_operators = torch.ops.mcdrop
torch.fx.node.has_side_effect(torch.ops.mcdrop.noise.default)  # a draw that nothing reads keeps its number


def noise(index: int, sizes: list[int]) -> Tensor:
    """The draw of site `index`, of shape `sizes`. A placeholder: the engine puts the real draw in its place."""
    raise RuntimeError(f"site {index} has no draw of shape {sizes}: a program runs only inside an engine")


def scale(x: Tensor, noise: Tensor) -> Tensor:
    """`x * noise` in the type of `x`, multiplied in float32 at least."""
    if x.dtype == noise.dtype:
        return x * noise
    return (x * noise).to(x.dtype)


def alpha_affine(p: float) -> tuple[float, float]:
    """The factors (a, c) of alpha dropout: `x * noise * a + (noise - 1 + p) * c` keeps mean and variance of SELU."""
    a = ((_SELU_SATURATION**2 * p + 1) * (1 - p)) ** -0.5
    return a, _SELU_SATURATION * a


def alpha_scale(x: Tensor, noise: Tensor, p: float) -> Tensor:
    """Alpha dropout of `x` where `noise` is 1 for a kept unit and 0 for a dropped one."""
    a, c = alpha_affine(p)
    return (x * (noise * a) + (noise - (1 - p)) * c).to(x.dtype)


def bernoulli(uniform: Tensor, probs: Tensor) -> Tensor:
    """1 with probability `probs`, elementwise, else 0, in the type of `probs`."""
    return (uniform >= 1 - probs.to(uniform.dtype)).to(probs.dtype)


OPERATORS = {
    torch.ops.mcdrop.noise.default: noise,
    torch.ops.mcdrop.scale.default: scale,
    torch.ops.mcdrop.alpha_scale.default: alpha_scale,
    torch.ops.mcdrop.bernoulli.default: bernoulli,
}
