"""Stochastic layers that PyTorch lacks: one file for each kind, a function and a thin Module.

They are ordinary layers for training, off in evaluation; capture finds their draws like any other, and `Site.kind`
gives the `dropout_kind` of their class. Unless a layer says otherwise, sequences are (batch, time, features).
"""

from mcdrop.layers.drop_connect import DropConnect, add_drop_connect, drop_connect
from mcdrop.layers.insertion import insert_dropout
from mcdrop.layers.locked import LockedDropout, locked_dropout
from mcdrop.layers.variational import VariationalGRU, VariationalLSTM

__all__ = [
    "DropConnect",
    "LockedDropout",
    "VariationalGRU",
    "VariationalLSTM",
    "add_drop_connect",
    "drop_connect",
    "insert_dropout",
    "locked_dropout",
]
