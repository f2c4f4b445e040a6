"""Conversion between the authors' checkpoints and HDMNet."""

from hdmnet.convert.checkpoint import read_checkpoint
from hdmnet.convert.conversion import Conversion, convert, from_official, to_official

__all__ = ["Conversion", "convert", "from_official", "read_checkpoint", "to_official"]
