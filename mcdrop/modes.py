"""The ways in which a prediction draws: what may be chosen, and what of it the rest has to know.

Masks:

    shared        one mask for all rows of a pass
    independent   one mask for each row of a pass
    balanced      as shared, and in each block of `BLOCK` passes every unit is dropped p * BLOCK times
                  (mcdrop.randomness.balance)

Passes are independent of one another, but for those of one block of balanced masks. What looks at the spread over
passes, or stops by it, has to look at whole blocks: `block_length` says how long they are.

The last layer: its dropout is sampled like any other, or integrated exactly (mcdrop.graph.last_layer).
"""

from typing import Literal, get_args

__all__ = ["BLOCK", "LAST_LAYERS", "MASK_MODES", "LastLayer", "MaskMode", "block_length"]

MaskMode = Literal["shared", "independent", "balanced"]
MASK_MODES: tuple[str, ...] = get_args(MaskMode)

LastLayer = Literal["sampled", "exact"]
LAST_LAYERS: tuple[str, ...] = get_args(LastLayer)

BLOCK = 10  # passes: whole at rates of one decimal; part of the definition of balanced masks, so it never changes


def block_length(masks: str) -> int:
    """How many passes, from a multiple of that on, depend on one another: `BLOCK` with balanced masks, else 1."""
    return BLOCK if masks == "balanced" else 1
