"""What may be computed in FP8; apart from Transformer Engine, which need not be there to speak of it."""

from dataclasses import dataclass
from typing import Literal

FILLED_HEAD_DIM = 128
"""The head size that Hopper trains attention in FP8 with."""


@dataclass(frozen=True)
class FP8:
    """Delayed scaling, E4M3 forward and E5M2 backward: the one recipe that attention trains with on Hopper."""

    attention: bool
    linear: bool
    pad_head_dim: bool = False
    """Heads of less than 128 are filled with zeros to 128."""
    margin: int = 0
    """Scales leave this many powers of two of room."""
    amax_history: int = 1024
    """Forward passes whose largest values a scale is taken from."""
    amax_from: Literal["max", "most_recent"] = "max"
    first_layers_bf16: int = 0
    last_layers_bf16: int = 0

    def head_dim(self, of_model: int) -> int:
        """The size of heads that attention computes with."""
        return max(of_model, FILLED_HEAD_DIM) if self.attention and self.pad_head_dim else of_model
