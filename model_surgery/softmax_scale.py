"""DroPE's softmax scale: beta, a factor of the attention logits for contexts longer than those trained on.

softmax(beta q.k / sqrt(head_dim)): a factor of the queries does the same, so it can be multiplied into weights.
"""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_surgery.shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor


def softmax_scale(factor: float, c: float) -> float:
    """beta = 1 + c ln s (arXiv:2512.12167) for s = `factor` times the training context."""
    return 1 + c * math.log(factor)


class SoftmaxScale(BaseModel):
    """A softmax scale for one context length: beta itself, or the context factor s and c of beta = 1 + c ln s."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: float | None = Field(None, gt=0, allow_inf_nan=False, description="factor of the attention logits, as tuned")
    factor: float | None = Field(
        None, ge=1, allow_inf_nan=False, description="s: context aimed at / context trained at; goes with c"
    )
    c: float | None = Field(None, ge=0, allow_inf_nan=False, description="c in beta = 1 + c ln s; goes with factor")
    apply: Literal["weights", "config"] = Field(
        "weights",
        description="weights: multiplied into the query weights or the query norm; config: said in config.json, which "
        "classes of the DroPE format apply and stock classes do not",
    )

    @model_validator(mode="after")
    def _one_way(self) -> "SoftmaxScale":
        if (self.factor is None) != (self.c is None):
            raise ValueError("factor and c go together: beta = 1 + c ln(factor)")
        if (self.beta is None) == (self.factor is None):
            raise ValueError("give either beta, or factor and c")
        return self

    @property
    def value(self) -> float:
        """beta."""
        if self.beta is not None:
            return self.beta
        assert self.factor is not None and self.c is not None  # `_one_way` lets nothing else pass
        return softmax_scale(self.factor, self.c)

    def formula(self) -> str:
        """beta in words: where it comes from and what it is."""
        if self.beta is not None:
            return f"beta = {self.beta:.6g}"
        return f"beta = 1 + {self.c:g} ln {self.factor:g} = {self.value:.6g}"


def scaled_tensors(shape: ModelShape) -> tuple[str, ...]:
    """Ends of the names of the tensors that a factor of the queries is multiplied into.

    A norm takes out what comes before it, so where queries have one, its weight; else the projection with its bias.
    """
    return ("q_proj.weight", "q_proj.bias") if shape.q_norm == "none" else ("q_norm.weight",)


def fold(tensors: dict[str, "Tensor"], shape: ModelShape, beta: float) -> dict[str, "Tensor"]:
    """The tensors of a model of `shape`, some or all, with beta multiplied into the queries in fp32."""
    ends = scaled_tensors(shape)
    return {name: tensor.float() * beta if name.endswith(ends) else tensor for name, tensor in tensors.items()}
