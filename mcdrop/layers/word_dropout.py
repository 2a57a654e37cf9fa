"""Word dropout: a token's id becomes that of the unknown word (Bowman et al. 2016, arXiv 1511.06349, section 3.1).

    y[b, t] = unknown_id with probability p, else ids[b, t]: drawn for each row and position alone

There is nothing to scale and no mean to keep: an id is a name. What the network sees on average is the embedding
(1 - p) E[ids] + p E[unknown_id], so the unknown word needs an embedding that training has formed, with this layer on.

Confused with: `TokenDropout`, which zeroes and scales embeddings; embedding dropout (Gal & Ghahramani 2016, arXiv
1512.05287), which drops a *word type* at all its positions; masked language modelling, which predicts what it hides.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Integer
from torch import Tensor, nn

from mcdrop.errors import InputError, SettingError
from mcdrop.layers.rates import check_rate

__all__ = ["WordDropout", "word_dropout"]


def word_dropout(
    ids: Integer[Tensor, "batch time"], p: float, unknown_id: int, training: bool
) -> Integer[Tensor, "batch time"]:
    """Token ids, in training each with probability `p` replaced by `unknown_id`.

    Raises:
        InputError: `ids` are not whole numbers.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(
            f"word dropout takes token ids, whole numbers; got {ids.dtype}. It stands before the embedding; after it "
            "use TokenDropout."
        )
    mask = F.dropout(torch.ones(ids.shape, device=ids.device), p, training)  # an ordinary site, as everywhere
    return ids.masked_fill(mask == 0, unknown_id)


class WordDropout(nn.Module):
    """`word_dropout` as a layer, before the embedding.

    Every position can be dropped, padding and class tokens too: mask padding out afterwards, as ever.

    Raises:
        SettingError: `p` is not from 0 to 1, or `unknown_id` is no id.
    """

    dropout_kind: ClassVar[str] = "word"

    def __init__(self, p: float, unknown_id: int) -> None:
        super().__init__()
        self.p = check_rate(p)
        if isinstance(unknown_id, bool) or not isinstance(unknown_id, int) or unknown_id < 0:
            raise SettingError(f"unknown_id is {unknown_id!r}; give the id of the unknown word, at least 0.")
        self.unknown_id = unknown_id

    def forward(self, ids: Integer[Tensor, "batch time"]) -> Integer[Tensor, "batch time"]:
        return word_dropout(ids, self.p, self.unknown_id, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, unknown_id={self.unknown_id}"
