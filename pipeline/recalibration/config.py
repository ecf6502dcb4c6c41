"""Settings of the recalibration stage."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_DecayRate = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduleConfig(_Section):
    """Learning rate over the run, as a share of `lr`."""

    kind: Literal["constant", "cosine", "wsd"] = Field(
        "cosine", description="shape after the warm-up; wsd: stable, then a decay over the last decay_steps"
    )
    warmup_steps: int = Field(100, ge=0, description="linear warm-up from 0, steps")
    decay_steps: int = Field(0, ge=0, description="wsd only: length of the final cosine decay, steps")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="learning rate at the end, as a share of lr")

    @model_validator(mode="after")
    def _decay_belongs_to_wsd(self) -> "ScheduleConfig":
        if (self.kind == "wsd") != (self.decay_steps > 0):
            raise ValueError("decay_steps must be given with kind: wsd and with no other")
        return self


class RecalibrationConfig(_Section):
    """How long, how fast and on how many processes the model is trained without positional embeddings."""

    tokens: int = Field(ge=1, description="training budget, tokens; rounded down to whole steps")
    batch: int = Field(ge=1, description="global batch, sequences")
    micro_batch: int = Field(1, ge=1, description="sequences per forward pass and data-parallel rank")
    data_parallel: int = Field(1, ge=1, description="data-parallel ranks; processes = this times TP")
    lr: float = Field(gt=0, allow_inf_nan=False, description="peak learning rate")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="learning rate over the run")
    betas: tuple[_DecayRate, _DecayRate] = Field((0.9, 0.95), description="AdamW moment decay rates")
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False, description="AdamW denominator constant")
    weight_decay: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="AdamW weight decay of matrices; norms never decay"
    )
    gradient_clip: float = Field(1.0, gt=0, allow_inf_nan=False, description="largest global gradient norm")
    zero_stage: Literal[1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="weights and activations; fp32 masters under bf16")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="how many newest checkpoints are kept")
    validation_every: int = Field(500, ge=1, description="steps between validations; one more at the start and the end")
    validation_rows: int = Field(64, ge=1, description="held-out rows per validation, sequences")
    position_embedding: Literal["none", "rope"] = Field(
        "none", description="none: recalibration; rope: the embedding is kept, which is ordinary pretraining"
    )
    mask_documents: bool = Field(
        False,
        description="attend only within a document, and leave the first token of each next document out of the loss",
    )
    control: bool = Field(
        False, description="also train the model with RoPE kept on the same rows: the fair in-context comparison"
    )

    @model_validator(mode="after")
    def _batch_divides(self) -> "RecalibrationConfig":
        per_pass = self.micro_batch * self.data_parallel
        if self.batch % per_pass:
            raise ValueError(
                f"batch = {self.batch} is not a multiple of micro_batch * data_parallel = {per_pass}; "
                f"use batch = {max(1, self.batch // per_pass) * per_pass}"
            )
        if self.control and self.position_embedding == "rope":
            raise ValueError("control = true beside position_embedding = rope would train the same model twice")
        return self

    def steps(self, row_length: int) -> int:
        """Whole optimizer steps in the budget."""
        return self.tokens // (self.batch * row_length)
