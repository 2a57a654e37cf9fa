"""LSTM and GRU with variational dropout: masks that stay the same over time (Gal & Ghahramani 2016, arXiv 1512.05287).

For each row, layer and direction, and for all time steps t of a sequence,

    gates[t] = W (x[t] * m_x / (1 - p_x)) + U (h[t - 1] * m_h / (1 - p_h)) + b

where m = 0 with probability p, else 1, one number for each feature. m_x is the mask on the input of the layer, shared
by its two directions (p_x is `input_dropout` at the first layer, `dropout` between layers); m_h is the mask on the
recurrent state, h[0] included, one for each direction (p_h is `recurrent_dropout`). It is the paper's tied form: one
mask for all gates, the same as dropping columns of W and U for the whole sequence. A mask acts only where the state
enters the gates: the cell state of an LSTM, and the state that the update gate of a GRU carries over, are kept whole.
The output is not masked; put `LockedDropout` after the last layer where it should be.

Mean and variance: the masked x and h, given what they were, have mean x and h and variance p / (1 - p) times their
square, the same draw at all steps. Behind the gates neither has a closed form. In evaluation, and where all
rates are 0, the layers are `nn.LSTM` and `nn.GRU` themselves, whose weights they share by name and shape.

In training the steps are a loop in Python, so `torch.export` unrolls it: a captured network has the number of steps of
its example, and takes longer to capture the more steps there are. Where the length has to vary, use `nn.LSTM` with
`LockedDropout` around it, which leaves out the mask on the recurrent state.

Confused with: `nn.LSTM(dropout=)`, which draws anew at every step and leaves the recurrent state alone; recurrent
dropout without memory loss (Semeniuta et al. 2016, arXiv 1603.05118), which masks the update of the cell; zoneout
(Krueger et al. 2017, arXiv 1606.01305), where units keep their old value; DropConnect on U, which is AWD-LSTM's.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mcdrop.errors import InputError
from mcdrop.layers.rates import check_rate

__all__ = ["VariationalGRU", "VariationalLSTM"]


class _Variational(nn.RNNBase):
    """What both share: rates, checks, and the walk over layers, directions and steps."""

    dropout_kind: ClassVar[str] = "variational"

    def _set_rates(self, dropout: float, input_dropout: float | None, recurrent_dropout: float | None) -> None:
        self.dropout = check_rate(dropout)
        self.input_dropout = self.dropout if input_dropout is None else check_rate(input_dropout)
        self.recurrent_dropout = self.dropout if recurrent_dropout is None else check_rate(recurrent_dropout)

    def _drops(self) -> bool:
        between = self.dropout if self.num_layers > 1 else 0.0
        return self.training and max(self.input_dropout, between, self.recurrent_dropout) > 0

    def _check_sequence(self, x: Any) -> None:
        if isinstance(x, PackedSequence):
            raise InputError(
                f"{type(self).__name__} takes a tensor, not a packed sequence: pad the sequences to one length, and "
                "leave out what the steps of the padding give."
            )
        if x.ndim != 3:
            layout = "(batch, time, features)" if self.batch_first else "(time, batch, features)"
            raise InputError(
                f"{type(self).__name__} takes {layout}; got a tensor of shape {tuple(x.shape)}. Give a single sequence "
                "a batch axis."
            )

    def _zeros(self, x: Tensor, width: int) -> Tensor:
        directions = 2 if self.bidirectional else 1
        return x.new_zeros((self.num_layers * directions, x.shape[0 if self.batch_first else 1], width))

    def _unrolled(self, x: Tensor, hx: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output (time, batch, features), or batch first, and the last states, in training."""
        directions = 2 if self.bidirectional else 1
        x = x.transpose(0, 1) if self.batch_first else x  # (time, batch, features)
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            x = x * F.dropout(x.new_ones((1, *x.shape[1:])), self.dropout if layer else self.input_dropout)
            outputs = []
            for direction in range(directions):
                number = layer * directions + direction
                states = tuple(state[number] for state in hx)
                mask = F.dropout(torch.ones_like(states[0]), self.recurrent_dropout)
                steps, states = self._steps(x.flip(0) if direction else x, states, mask, self.all_weights[number])
                output = torch.stack(steps)
                outputs.append(output.flip(0) if direction else output)
                last.append(states)
            x = torch.cat(outputs, -1)
        return x.transpose(0, 1) if self.batch_first else x, tuple(map(torch.stack, zip(*last, strict=True)))

    def _steps(
        self, x: Tensor, states: tuple[Tensor, ...], mask: Tensor, weights: Sequence[Tensor]
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The state h after each step of one layer in one direction, and its last states.

        `x` is (time, batch, features), a state and `mask` are (batch, width); the mask multiplies h before the gates.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input_dropout={self.input_dropout}, recurrent_dropout={self.recurrent_dropout}"


class VariationalLSTM(_Variational, nn.LSTM):
    """`nn.LSTM` with variational dropout. Arguments, layouts, weights and states are those of `nn.LSTM`, except that

    Args:
        dropout: the rate between layers, and of the other masks unless they are given, from 0 to 1; 0.5 unless given.
        input_dropout: the rate on the input of the first layer.
        recurrent_dropout: the rate on the recurrent state of every layer.

    Raises:
        SettingError: a rate is not from 0 to 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.5,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_dropout: float | None = None,
        recurrent_dropout: float | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, 0.0, bidirectional, proj_size, device, dtype
        )
        self._set_rates(dropout, input_dropout, recurrent_dropout)

    def forward(  # type: ignore[override]  # packed sequences are refused
        self, input: Float[Tensor, "_ _ features"], hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `nn.LSTM`.

        Raises:
            InputError: `input` is packed, or one sequence without a batch axis.
        """
        self._check_sequence(input)
        if not self._drops():
            return super().forward(input, hx)
        if hx is None:
            hx = self._zeros(input, self.proj_size or self.hidden_size), self._zeros(input, self.hidden_size)
        self.check_forward_args(input, hx, None)
        output, (h, c) = self._unrolled(input, hx)
        return output, (h, c)

    def _steps(
        self, x: Tensor, states: tuple[Tensor, ...], mask: Tensor, weights: Sequence[Tensor]
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        weight_ih, weight_hh, *rest = weights
        bias = rest[0] + rest[1] if self.bias else None
        h, c = states
        outputs = []
        for gates in F.linear(x, weight_ih, bias).unbind():  # all steps at once; (batch, 4 * hidden)
            i, f, g, o = (gates + F.linear(h * mask, weight_hh)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            if self.proj_size:
                h = F.linear(h, rest[-1])
            outputs.append(h)
        return outputs, (h, c)


class VariationalGRU(_Variational, nn.GRU):
    """`nn.GRU` with variational dropout. Arguments, layouts, weights and states are those of `nn.GRU`, except that

    Args:
        dropout: the rate between layers, and of the other masks unless they are given, from 0 to 1; 0.5 unless given.
        input_dropout: the rate on the input of the first layer.
        recurrent_dropout: the rate on the recurrent state of every layer.

    Raises:
        SettingError: a rate is not from 0 to 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.5,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_dropout: float | None = None,
        recurrent_dropout: float | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, 0.0, bidirectional, device=device, dtype=dtype
        )
        self._set_rates(dropout, input_dropout, recurrent_dropout)

    def forward(  # type: ignore[override]  # packed sequences are refused
        self, input: Float[Tensor, "_ _ features"], hx: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `nn.GRU`.

        Raises:
            InputError: `input` is packed, or one sequence without a batch axis.
        """
        self._check_sequence(input)
        if not self._drops():
            return super().forward(input, hx)
        if hx is None:
            hx = self._zeros(input, self.hidden_size)
        self.check_forward_args(input, hx, None)
        output, (h,) = self._unrolled(input, (hx,))
        return output, h

    def _steps(
        self, x: Tensor, states: tuple[Tensor, ...], mask: Tensor, weights: Sequence[Tensor]
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        weight_ih, weight_hh, *biases = weights
        bias_ih, bias_hh = biases if self.bias else (None, None)
        (h,) = states
        outputs = []
        for gates in F.linear(x, weight_ih, bias_ih).unbind():  # all steps at once; (batch, 3 * hidden)
            r, z, n = gates.chunk(3, -1)
            state_r, state_z, state_n = F.linear(h * mask, weight_hh, bias_hh).chunk(3, -1)
            n = torch.tanh(n + torch.sigmoid(r + state_r) * state_n)
            h = n + torch.sigmoid(z + state_z) * (h - n)
            outputs.append(h)
        return outputs, (h,)
