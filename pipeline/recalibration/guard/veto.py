"""Makes DeepSpeed leave an update out: the one place that knows its insides for that (read in DeepSpeed 0.19).

Every ZeRO optimizer computes the global gradient norm before it changes anything, and takes the way of an fp16
overflow where that is not finite: gradients are cleared, weights, moments and Adam's step stay as they are, and the
engine counts a skipped step. That way is taken here for other reasons too, by handing the optimizer an infinite norm.
"""

import math
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import combine_grad_norm_groups, get_global_norm_of_tensors
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


class Veto:
    """What became of the last update."""

    def __init__(self, judge: Callable[[float], str | None]) -> None:
        self.norm = math.nan
        """Global gradient norm before clipping; inf where it was not finite (DeepSpeed does not tell nan from inf)."""
        self.reason: str | None = None
        """Why the update was not made; None if it was."""
        self._judge = judge

    def refuses(self, norm: Tensor) -> bool:
        """Judges the update of this norm, a scalar: the same on all ranks, which must all call it."""
        # DeepSpeed has put -1 for nan and inf.
        agreed = torch.where(torch.isfinite(norm) & (norm >= 0), norm, math.inf)
        # The ranks' norms come from the same reductions; if sums are ever rounded otherwise somewhere, one rank that
        # made an update which the others left out would go unnoticed and never come back.
        torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MAX)
        self.norm = agreed.item()
        self.reason = self._judge(self.norm)
        if self.reason is None and not math.isfinite(self.norm):
            self.reason = f"gradient norm is not finite ({self.norm})"
        return self.reason is not None


def install_veto(engine: deepspeed.DeepSpeedEngine, judge: Callable[[float], str | None]) -> Veto:
    """From now on `judge` decides about every update of the engine, before anything is changed.

    It is called on every rank, once per update, with the global gradient norm before clipping (inf where it is not
    finite) and must answer alike on all: a reason if the update is to be left out, else None. An update whose norm is
    not finite is left out whatever it answers. Gradients must not be scaled, as they are in fp16.

    Raises: TypeError if the engine is not of ZeRO 1, 2 or 3.
    """
    veto, optimizer = Veto(judge), engine.optimizer
    for kind, install in _INSTALLERS.items():
        if isinstance(optimizer, kind):
            install(optimizer, veto)
            return veto
    raise TypeError(f"no veto for DeepSpeed's {type(optimizer).__name__}; it is for ZeRO 1, 2 and 3 in fp32 and bf16")


def _install_bf16(optimizer: BF16_Optimizer, veto: Veto) -> None:
    """ZeRO 1 in bf16 with fp32 gradients: step() takes the norm of what get_grads_for_norm() gives it."""
    get_grads = optimizer.get_grads_for_norm

    def get_grads_for_norm(for_clipping: bool = False) -> Any:
        grads = get_grads(for_clipping=for_clipping)
        if for_clipping:
            return grads
        dense, of_experts = grads
        norm = get_global_norm_of_tensors(dense, norm_type=optimizer.norm_type, mpu=optimizer.mpu)
        return ([_infinite(norm)], of_experts) if veto.refuses(norm) else grads

    optimizer.get_grads_for_norm = get_grads_for_norm


def _install_stages_1_and_2(optimizer: DeepSpeedZeroOptimizer, veto: Veto) -> None:
    scaled_global_norm = optimizer.scaled_global_norm

    def global_norm(norm_type: int = 2) -> Tensor:
        norm = scaled_global_norm(norm_type)
        return _infinite(norm) if veto.refuses(norm) else norm

    optimizer.scaled_global_norm = global_norm
    # In bf16 an infinite norm counts only with this. It also has every gradient looked at before the norm is taken,
    # which tells nothing that the norm does not.
    optimizer.check_grad_overflow = True
    optimizer.check_overflow = lambda partition_gradients=True: None


def _install_stage_3(optimizer: DeepSpeedZeroOptimizer_Stage3, veto: Veto) -> None:
    get_norm_groups = optimizer._get_norm_groups

    def norm_groups() -> list[Tensor]:
        groups = get_norm_groups()
        norm = combine_grad_norm_groups(groups)
        return [_infinite(norm)] if veto.refuses(norm) else groups

    optimizer._get_norm_groups = norm_groups


def _infinite(norm: Tensor) -> Tensor:
    return torch.full_like(norm, math.inf)


_INSTALLERS: dict[type, Callable[[Any, Veto], None]] = {
    BF16_Optimizer: _install_bf16,
    DeepSpeedZeroOptimizer: _install_stages_1_and_2,
    DeepSpeedZeroOptimizer_Stage3: _install_stage_3,
}
