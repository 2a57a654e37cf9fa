"""Stochastic layers that PyTorch lacks: one file for each kind, a function and a thin Module.

They are ordinary layers for training, off in evaluation; capture finds their draws like any other, and `Site.kind`
gives the `dropout_kind` of their class. Sequences are (batch, time, features); `VariationalLSTM` and `VariationalGRU`
have the arguments of `nn.LSTM` and `nn.GRU`, `batch_first` among them.
"""

from mcdrop.layers.concrete import ConcreteDropout, concrete_dropout
from mcdrop.layers.drop_block import DropBlock1d, DropBlock2d, DropBlock3d, LinearSchedule, drop_block
from mcdrop.layers.drop_connect import DropConnect, add_drop_connect, drop_connect
from mcdrop.layers.drop_path import DropPath, drop_path, linear_depth_rates
from mcdrop.layers.gaussian import GaussianDropout, gaussian_dropout
from mcdrop.layers.insertion import insert_dropout
from mcdrop.layers.locked import LockedDropout, locked_dropout
from mcdrop.layers.shake_shake import ShakeShake, shake_shake
from mcdrop.layers.token_dropout import TokenDropout, token_dropout
from mcdrop.layers.variational import VariationalGRU, VariationalLSTM
from mcdrop.layers.word_dropout import WordDropout, word_dropout

__all__ = [
    "ConcreteDropout",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "DropConnect",
    "DropPath",
    "GaussianDropout",
    "LinearSchedule",
    "LockedDropout",
    "ShakeShake",
    "TokenDropout",
    "VariationalGRU",
    "VariationalLSTM",
    "WordDropout",
    "add_drop_connect",
    "concrete_dropout",
    "drop_block",
    "drop_connect",
    "drop_path",
    "gaussian_dropout",
    "insert_dropout",
    "linear_depth_rates",
    "locked_dropout",
    "shake_shake",
    "token_dropout",
    "word_dropout",
]
