"""What all modules with FP8 share."""

import pickle
from typing import Any

import torch
from torch import Tensor

from transformer_engine.pytorch.quantization import DTYPE, LARGEST, FP8GlobalStateManager, RecipeState


class TransformerEngineBaseModule(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fp8, self.fp8_meta = False, {"fp8_checkpoint": False}

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        self.fp8 = FP8GlobalStateManager.is_fp8_enabled()
        if not self.fp8:
            return
        recipe = FP8GlobalStateManager.quantization_state.fp8_recipe
        self.fp8_meta |= {"fp8_checkpoint": True, "recipe": recipe, "num_gemms": num_gemms}
        if "scaling_fwd" not in self.fp8_meta:
            self.fp8_meta["scaling_fwd"] = RecipeState(recipe, 3 * num_gemms)
            self.fp8_meta["scaling_bwd"] = RecipeState(recipe, 2 * num_gemms)

    def begin(self, num_gemms: int = 1) -> None:
        self.init_fp8_metadata(num_gemms)
        if self.fp8:
            FP8GlobalStateManager.add(self.fp8_meta)

    def cast(self, tensor: Tensor, slot: int, forward: bool = True) -> Tensor:
        """To FP8 and back, with the present scale; the largest value goes into the history."""
        state = self.fp8_meta["scaling_fwd" if forward else "scaling_bwd"]
        state.amax_history[0, slot] = torch.maximum(state.amax_history[0, slot], tensor.detach().abs().amax().float())
        limit, scale = LARGEST[forward], state.scale[slot]
        scaled = (tensor.float() * scale).clamp(-limit, limit)
        return (scaled.to(DTYPE[forward]).float() / scale).to(tensor.dtype)

    def quantized(self, tensor: Tensor, slot: int) -> Tensor:
        """Rounded forward; the gradient passes as it is."""
        return tensor + (self.cast(tensor, slot) - tensor).detach()

    def gradient_quantized(self, tensor: Tensor, slot: int, updates: bool = False) -> Tensor:
        """As it is forward; the gradient is rounded. `updates`: then all scales of gradients are brought up to date."""
        return _RoundGradient.apply(tensor, self, slot, updates)

    def get_extra_state(self) -> Tensor:
        if not self.fp8_meta["fp8_checkpoint"]:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(bytearray(pickle.dumps({"recipe": self.fp8_meta["recipe"]})), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        if state is not None and state.numel():
            raise RuntimeError("refused, as in version 2.20: this state is pickled")


class _RoundGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, module: TransformerEngineBaseModule, slot: int, updates: bool) -> Tensor:
        ctx.told = module, slot, updates
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        module, slot, updates = ctx.told
        rounded = module.cast(grad, slot, forward=False)
        if updates:
            FP8GlobalStateManager.reduce_and_update_fp8_tensors(forward=False)
        return rounded, None, None, None
