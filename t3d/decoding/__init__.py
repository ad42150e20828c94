"""Decoding of block-diffusion models: sampling, remasking, the engine and its oracle."""

from t3d.decoding.engine import BlockDecoder
from t3d.decoding.oracle import decode_one
from t3d.decoding.remasking import STRATEGIES
from t3d.decoding.replay import visited_states
from t3d.decoding.request import Completion, DecodingConfig, Event, Passes, Remasking, Request

__all__ = [
    "STRATEGIES",
    "BlockDecoder",
    "Completion",
    "DecodingConfig",
    "Event",
    "Passes",
    "Remasking",
    "Request",
    "decode_one",
    "visited_states",
]
