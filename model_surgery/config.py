"""Settings of the surgery stage."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SurgeryConfig(BaseModel):
    """How the checkpoint is cut and how the cut is verified."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor_parallel: int = Field(1, ge=1, description="TP degree: number of ranks that share every layer")
    verify: Literal["full", "off"] = Field(
        "full", description="full: logits of the source against the layout, with RoPE and without; off: no check"
    )
    verify_tokens: int = Field(256, ge=8, description="length of the verified sequences, tokens (2 sequences)")


class ExportConfig(BaseModel):
    """How the recalibrated weights leave as a Hugging Face folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float32", "bfloat16", "float16", "source"] = Field(
        "source", description="dtype of the exported weights; source: that of the original checkpoint"
    )
