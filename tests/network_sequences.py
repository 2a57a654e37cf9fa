"""Modules for the table in networks.py: attention, transformers and recurrent networks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from network_modules import P

# Attention: input (batch, 5, 8), output (batch, 3) unless said otherwise


class Attention(nn.Module):
    """F.scaled_dot_product_attention with `dropout_p`; `form` picks the rest of the call."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.q, self.kv, self.out = nn.Linear(8, 8), nn.Linear(8, 8 if form == "enable_gqa" else 16), nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 4 if self.form == "enable_gqa" else 2, -1).transpose(1, 2)
        k, v = (t.view(batch, length, 2, -1).transpose(1, 2) for t in self.kv(x).chunk(2, -1))
        keywords: dict[str, object] = {}
        if self.form == "bool mask":
            keywords["attn_mask"] = torch.ones(length, length, dtype=torch.bool, device=x.device).tril(1)
        elif self.form == "float mask":
            keywords["attn_mask"] = torch.linspace(-1, 1, length * length, device=x.device).view(length, length)
        elif self.form == "padding":  # (batch, 1, 1, length), True where a key may be seen: a row may see none
            keywords["attn_mask"] = ~padding[:, None, None, :]
        elif self.form == "is_causal":
            keywords["is_causal"] = True
        elif self.form == "scale":
            keywords["scale"] = 0.2
        elif self.form == "enable_gqa":
            keywords["enable_gqa"] = True
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=P if self.training else 0.0, **keywords)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1).mean(1))


class MergedHeads(nn.Module):
    """Attention by hand with heads merged into the batch axis, (batch * heads) or (heads * batch)."""

    def __init__(self, batch_major: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.dropout, self.batch_major = (
            nn.Linear(8, 24),
            nn.Linear(8, 3),
            nn.Dropout(P),
            batch_major,
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        if self.batch_major:
            q, k, v = (
                t.view(batch, length, 2, 4).transpose(1, 2).reshape(batch * 2, length, 4)
                for t in self.qkv(x).chunk(3, -1)
            )
        else:
            q, k, v = (torch.cat(t.split(4, -1), 0) for t in self.qkv(x).chunk(3, -1))
        weights = self.dropout(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / 2, -1))
        mixed = torch.bmm(weights, v)
        if self.batch_major:
            mixed = mixed.view(batch, 2, length, 4).transpose(1, 2).reshape(batch, length, 8)
        else:
            mixed = mixed.view(2, batch, length, 4).permute(1, 2, 0, 3).reshape(batch, length, 8)
        return self.out(mixed.mean(1))


class MergedPositions(nn.Module):
    """Dropout on (batch * length, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.dropout = nn.Linear(8, 8), nn.Linear(8, 3), nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(F.relu(self.inner(x.reshape(-1, x.shape[-1]))))
        return self.outer(h.view(x.shape[0], -1, h.shape[-1]).mean(1))


class MultiheadAttention(nn.Module):
    """nn.MultiheadAttention with dropout; `form` "batch first", "attn_mask", "key_padding_mask" or "need_weights"."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.attention = nn.MultiheadAttention(8, 2, dropout=P, batch_first=form == "batch first")
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        if self.form != "batch first":
            x = x.transpose(0, 1)  # (length, batch, features)
        mask = None
        if self.form == "attn_mask":
            mask = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool, device=x.device).triu(2)
        mixed, weights = self.attention(
            x, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=self.form == "need_weights"
        )
        pooled = mixed.mean(1 if self.form == "batch first" else 0)
        if weights is not None:
            pooled = pooled + weights.mean((1, 2))[:, None]
        return self.out(pooled)


class Encoder(nn.Module):
    """nn.TransformerEncoder; `mask` None, "causal" (built here) or "padding" (an input, True where padded)."""

    def __init__(
        self, *, batch_first: bool, norm_first: bool = False, layers: int = 1, mask: str | None = None
    ) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=batch_first and not norm_first)
        self.head, self.batch_first, self.mask = nn.Linear(8, 3), batch_first, mask

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        if not self.batch_first:
            x = x.transpose(0, 1)
        if self.mask == "causal":
            causal = nn.Transformer.generate_square_subsequent_mask(
                x.shape[1 if self.batch_first else 0], device=x.device
            )
            h = self.encoder(x, mask=causal)
        elif self.mask == "padding":
            h = self.encoder(x, src_key_padding_mask=padding)
        else:
            h = self.encoder(x)
        if not self.batch_first:
            h = h.transpose(0, 1)
        if padding is None:
            return self.head(h.mean(1))
        seen = (~padding)[..., None]
        return self.head((h * seen).sum(1) / seen.sum(1))


class Decoder(nn.Module):
    """nn.TransformerDecoder: inputs target (batch, 4, 8) and memory (batch, 5, 8)."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(8, 2, 12, dropout=0.2, batch_first=True)
        self.decoder, self.head = nn.TransformerDecoder(layer, 1), nn.Linear(8, 3)

    def forward(self, target: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        return self.head(self.decoder(target, memory, tgt_mask=mask, tgt_is_causal=True).mean(1))


class TextClassifier(nn.Module):
    """Inputs ids (batch, length) and padding (batch, length), True where padded; the length may vary."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(11, 8), nn.Embedding(16, 8)
        self.dropout = nn.Dropout(0.2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        h = self.embedding(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        h = self.layer(self.dropout(h), src_key_padding_mask=padding)
        seen = (~padding)[..., None]
        return self.head((h * seen).sum(1) / seen.sum(1))


class LastToken(nn.Module):
    """GPT-2's and Llama's classifier: logits of each row's last real token, picked by index. Input ids (batch, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.head, self.dropout = (
            nn.Embedding(11, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
            nn.Dropout(P),
        )

    def forward(self, ids: Tensor) -> Tensor:
        h = self.dropout(torch.tanh(self.mix(self.embedding(ids).cumsum(1))))
        logits = self.head(h)
        last = (ids != 0).int().sum(1) - 1
        return logits[torch.arange(ids.shape[0], device=ids.device), last]


# Recurrent: input (batch, 4, 5), output (batch, 3)


class Recurrent(nn.Module):
    """nn.LSTM, GRU or RNN with dropout between its layers; `state` gives an initial state."""

    def __init__(self, kind: type[nn.RNNBase], *, state: bool = False, **keywords: object) -> None:
        super().__init__()
        self.rnn = kind(5, 4, **{"num_layers": 2, "dropout": P, "batch_first": True, **keywords})
        directions = 2 if self.rnn.bidirectional else 1
        width = directions * (self.rnn.proj_size or 4)
        self.head, self.state, self.directions = nn.Linear(width, 3), state, directions

    def forward(self, x: Tensor) -> Tensor:
        rnn = self.rnn
        initial = None
        if self.state:
            shape = (rnn.num_layers * self.directions, x.shape[0])
            initial = x.new_full((*shape, rnn.proj_size or 4), 0.2)
            if rnn.mode == "LSTM":
                initial = (initial, x.new_full((*shape, 4), -0.1))
        out, last = rnn(x if rnn.batch_first else x.transpose(0, 1), initial)
        last = last[0] if rnn.mode == "LSTM" else last
        return self.head(out.mean(1 if rnn.batch_first else 0)) + last.sum((0, 2))[:, None]


class WeightDropout(nn.Module):
    """A parametrization that draws: DropConnect on the weight it stands on."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, P, self.training)


def weight_dropped(kind: type[nn.RNNBase], *names: str, **keywords: object) -> nn.Module:
    """A recurrent network whose weights `names` are dropped by parametrizations."""
    model = Recurrent(kind, **keywords)
    for name in names:
        parametrize.register_parametrization(model.rnn, name, WeightDropout())
    return model


class WeightDrop(nn.Module):
    """AWD-LSTM's: the recurrent weight is a tensor that every call assigns anew."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Recurrent(nn.LSTM, num_layers=1, dropout=0.0)
        weight = self.inner.rnn.weight_hh_l0
        del self.inner.rnn.weight_hh_l0
        self.raw = nn.Parameter(weight.detach())
        self.inner.rnn.weight_hh_l0 = weight.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        self.inner.rnn.weight_hh_l0 = F.dropout(self.raw, P) if self.training else self.raw.clone()
        return self.inner(x)


class Variational(nn.Module):
    """AWD-LSTM's locked dropout: one mask for all time steps, (1, batch, features) or (batch, 1, features)."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.one, self.two, self.head = nn.GRU(5, 4), nn.GRU(4, 4), nn.Linear(4, 3)

    def locked(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape = (x.size(0), 1, x.size(2)) if self.batch_first else (1, x.size(1), x.size(2))
        return x.new_empty(shape).bernoulli_(1 - P).div_(1 - P).expand_as(x) * x

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.one(x.transpose(0, 1))
        h = self.locked(h.transpose(0, 1)).transpose(0, 1) if self.batch_first else self.locked(h)
        h, _ = self.two(h)
        return self.head(h[-1])
