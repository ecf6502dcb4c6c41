"""Regions, and the global buffers of largest values, by the rules of version 2.20."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

LARGEST = {True: 448.0, False: 57344.0}  # E4M3 forward, E5M2 backward
DTYPE = {True: torch.float8_e4m3fn, False: torch.float8_e5m2}


@dataclass
class State:
    fp8_enabled: bool = False
    fp8_recipe: Any = None
    fp8_distributed_group: Any = None
    is_first_fp8_module: bool = False
    autocast_depth: int = 0


class RecipeState:
    def __init__(self, recipe: Any, slots: int) -> None:
        self.scale = torch.ones(slots)
        self.amax_history = torch.zeros(recipe.amax_history_len, slots)


@dataclass
class Buffer:
    states: list[RecipeState] = field(default_factory=list)
    recipe: Any = None
    group: Any = None


class FP8GlobalStateManager:
    quantization_state = State()
    buffers: ClassVar[dict[bool, Buffer]] = {True: Buffer(), False: Buffer()}
    updates: ClassVar[dict[bool, int]] = {True: 0, False: 0}

    @classmethod
    def reset(cls) -> None:
        cls.quantization_state, cls.buffers = State(), {True: Buffer(), False: Buffer()}

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return cls.quantization_state.fp8_enabled

    @classmethod
    def is_first_fp8_module(cls) -> bool:
        result = cls.quantization_state.is_first_fp8_module
        cls.quantization_state.is_first_fp8_module = False
        return result

    @classmethod
    def add(cls, fp8_meta: dict[str, Any]) -> None:
        for forward, name in ((True, "scaling_fwd"), (False, "scaling_bwd")):
            buffer, state = cls.buffers[forward], fp8_meta[name]
            buffer.recipe, buffer.group = fp8_meta["recipe"], cls.quantization_state.fp8_distributed_group
            if not any(state is known for known in buffer.states):
                buffer.states.append(state)

    @classmethod
    def reduce_and_update_fp8_tensors(cls, forward: bool = True) -> None:
        buffer = cls.buffers[forward]
        cls.updates[forward] += 1
        for state in buffer.states:
            amax = state.amax_history[0]
            if buffer.recipe.reduce_amax and torch.distributed.get_world_size(buffer.group) > 1:
                torch.distributed.all_reduce(amax, torch.distributed.ReduceOp.MAX, group=buffer.group)
            largest = state.amax_history.amax(0) if buffer.recipe.amax_compute_algo == "max" else amax.clone()
            scale = LARGEST[forward] / largest / 2**buffer.recipe.margin
            state.scale.copy_(torch.where(largest > 0, scale, state.scale))
            state.amax_history.copy_(state.amax_history.roll(-1, 0))
            state.amax_history[0] = 0


class autocast:
    def __init__(self, enabled: bool = True, recipe: Any = None, amax_reduction_group: Any = None) -> None:
        self.enabled, self.recipe, self.group = enabled, recipe, amax_reduction_group

    def __enter__(self) -> "autocast":
        state = FP8GlobalStateManager.quantization_state
        self.before = (state.fp8_enabled, state.fp8_recipe, state.fp8_distributed_group)
        state.fp8_enabled, state.fp8_recipe, state.fp8_distributed_group = self.enabled, self.recipe, self.group
        if state.autocast_depth == 0:
            state.is_first_fp8_module = True
        state.autocast_depth += 1
        return self

    def __exit__(self, *raised: object) -> None:
        state = FP8GlobalStateManager.quantization_state
        state.fp8_enabled, state.fp8_recipe, state.fp8_distributed_group = self.before
        state.autocast_depth -= 1
        if self.enabled and state.autocast_depth == 0 and torch.is_grad_enabled():
            FP8GlobalStateManager.reduce_and_update_fp8_tensors(forward=True)
