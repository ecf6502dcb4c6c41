"""Settings of the surgery stage."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_surgery.shape import NormKind
from model_surgery.softmax_scale import SoftmaxScale


class SurgeryConfig(BaseModel):
    """How the checkpoint is cut and how the cut is verified."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor_parallel: int = Field(1, ge=1, description="TP degree: number of ranks that share every layer")
    qk_norm: NormKind = Field(
        "none", description="RMSNorm put on queries and keys: over all heads together (full) or over each (per_head)"
    )
    qk_norm_init: Literal["ones", "calibrated"] = Field(
        "ones", description="weights of that norm: ones, as published, or measured so that attention logits keep scale"
    )
    calibration_rows: int = Field(4, ge=1, description="training rows that a calibrated norm is measured on, sequences")
    verify: Literal["full", "sample", "off"] = Field(
        "full",
        description="full: logits of the source against the layout, with RoPE and without; sample: of its first, "
        "middle and last layer alone, for models that do not fit in memory; both: every tensor comes back; off: none",
    )
    verify_tokens: int = Field(256, ge=8, description="length of the verified sequences, tokens (2 sequences)")

    @property
    def calibrates(self) -> bool:
        """Whether a norm is measured on rows."""
        return self.qk_norm != "none" and self.qk_norm_init == "calibrated"

    @model_validator(mode="after")
    def _init_belongs_to_a_norm(self) -> "SurgeryConfig":
        if self.qk_norm == "none" and self.qk_norm_init != "ones":
            raise ValueError(f"qk_norm_init = {self.qk_norm_init!r} is for a norm that is put in; set qk_norm too")
        return self


class ExportConfig(BaseModel):
    """How the recalibrated weights leave as a Hugging Face folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float32", "bfloat16", "float16", "source"] = Field(
        "source", description="dtype of the exported weights; source: that of the original checkpoint"
    )
    format: Literal["auto", "identity_rope"] = Field(
        "auto",
        description="class of the model without positions; auto: see docs/export.md; identity_rope: the source's own "
        "class with a rotation that is the identity, which llama.cpp computes rightly",
    )
    softmax_scale: SoftmaxScale | None = Field(
        None, description="a second export, drope-scaled, for contexts longer than those trained on; none if not given"
    )
