"""Balanced masks: in each block of `BLOCK` passes every unit is dropped p * BLOCK times.

Which passes those are, every unit chooses for itself: stratified sampling over passes, unit by unit (a Latin hypercube;
McKay, Beckman and Conover 1979, Stein 1987). So the passes of a block make up for one another: what a unit does to the
output by itself cancels in their mean, and of an output that is linear in the masks the mean is exact.

Definition, version 1, in the terms of `mcdrop.randomness.noise`. Pass t = n b + i is the i-th of block b, n = BLOCK,
and limit = round(p n 2**32), ties to even:

    count    = limit // 2**32, and one more where the first 32 bits of word(2**63 + b, ...) < limit modulo 2**32
    dropped  where hash32 (n - i) < 2**32 left, left being `count` less the passes of the block before t that dropped

That is selection sampling (Fan, Muller and Rezucha 1962; Knuth, volume 2, algorithm 3.4.2S): a unit drops in exactly
`count` passes of a block, any of them with the same chance. Where p n is whole, so is the count. Where it is not, the
count is rounded up or down at random, so that its mean is p n. Each single pass has the law of any other mask: its
units drop with probability p (to within 2**-28), independently of one another. Blocks are independent; any chunk of
passes can be computed on its own, as part of the blocks it lies in.
"""

import math

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mcdrop.modes import BLOCK
from mcdrop.randomness.noise import EXTRA, Number, threshold
from mcdrop.randomness.words import Device, offsets, words

__all__ = ["balanced_mask"]

_WORDS = BLOCK // 2  # of a block: each serves two passes
_ONE = 2**32


def balanced_mask(
    *, p: Number, shape: tuple[int, ...], seed: int, site: int, passes: range, device: Device = None
) -> Bool[Tensor, "passes ..."]:
    """Which units of each pass stay, (passes, *shape), balanced over blocks of `BLOCK` passes.

    Arguments as for `noise.keep_mask`; one draw serves all rows.

    Raises:
        SettingError: arguments that do not fit together.
    """
    threshold(p)  # checks it
    axes = offsets(shape, passes, None, None, 1, True, device)
    blocks = range(passes.start // BLOCK, -(-passes.stop // BLOCK)) if passes else range(0)
    left = _counts(round(p * BLOCK * _ONE), axes, seed, site, blocks)  # (blocks, units), times 2**32
    kept = torch.empty((len(blocks), BLOCK, left.shape[1]), dtype=torch.bool, device=left.device)
    first, count = blocks.start * _WORDS, len(blocks) * _WORDS
    for (place, units), word in words(axes, seed, site, first, count, together=_WORDS):
        some = slice(place.start // _WORDS, place.stop // _WORDS)
        halves = word.view(-1, _WORDS, word.shape[1])
        todo = left[some, units]
        for i in range(BLOCK):
            half = halves[:, i // 2] if i % 2 == 0 else halves[:, i // 2] << 32
            hashes = (half >> 32).add_(2**31)  # torch's shift keeps the sign, as in the definition of hash32
            stays = torch.ge(hashes.mul_(BLOCK - i), todo)
            kept[some, i, units] = stays
            todo.sub_(_ONE).add_(stays, alpha=_ONE)
    start = passes.start - blocks.start * BLOCK
    return kept.view(-1, left.shape[1])[start : start + len(passes)].reshape(len(passes), *shape)


def _counts(
    limit: int, axes: list[Int64[Tensor, " _"]], seed: int, site: int, blocks: range
) -> Int64[Tensor, "blocks units"]:
    """How often each unit drops in each block, times 2**32."""
    whole, rest = divmod(limit, _ONE)
    units = math.prod(len(axis) for axis in axes)
    counts = torch.full((len(blocks), units), whole * _ONE, device=axes[0].device)
    if rest:
        for place, word in words(axes, seed, site, EXTRA + blocks.start, len(blocks)):
            counts[place].add_((word >> 32).bitwise_and_(_ONE - 1) < rest, alpha=_ONE)
    return counts
