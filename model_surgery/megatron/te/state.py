"""The scales of FP8, and the largest values that they come from: what a checkpoint must hold to go on unchanged.

Transformer Engine would put them into the state dict as `_extra_state`, pickled, and by default refuses to load that
again. Here they are plain tensors. They are the same on all ranks, whatever the TP degree, since largest values are
taken over all of them.
"""

import torch
from torch import Tensor
from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

from model_surgery.megatron.te.fp8 import FP8Switch

_DIRECTIONS = ("scaling_fwd", "scaling_bwd")
_PARTS = ("scale", "amax_history")
_SLOTS = 3
"""Tensors in FP8 that Transformer Engine provides for with every product in the forward pass."""


def fp8_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """By `module.direction.part`: scales [slots] and histories [passes, slots], fp32; empty where none was used yet."""
    return {
        f"{name}.{direction}.{part}": getattr(module.fp8_meta[direction], part).detach()
        for name, module in model.named_modules()
        if isinstance(module, TransformerEngineBaseModule)
        for direction in _DIRECTIONS
        if hasattr(module.fp8_meta.get(direction), _PARTS[0])
        for part in _PARTS
    }


@torch.no_grad()  # or the end of the regions below would move on the scales of whatever has run before
def load_fp8_state(model: torch.nn.Module, switch: FP8Switch, state: dict[str, Tensor]) -> None:
    """Sets what `fp8_state` gave; modules that it does not name begin afresh, names without a module are left out.

    A history of another length is taken over as far as it goes.
    """
    for name, module in model.named_modules():
        if not isinstance(module, TransformerEngineBaseModule) or f"{name}.{_DIRECTIONS[0]}.scale" not in state:
            continue
        with switch.region(True):
            module.init_fp8_metadata(num_gemms=len(state[f"{name}.{_DIRECTIONS[0]}.scale"]) // _SLOTS)
        for direction in _DIRECTIONS:
            for part in _PARTS:
                into, value = getattr(module.fp8_meta[direction], part), state[f"{name}.{direction}.{part}"]
                rows = min(len(into), len(value))
                into[:rows].copy_(value[:rows])
