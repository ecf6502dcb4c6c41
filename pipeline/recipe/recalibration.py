"""Settings of the recalibration stage."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_DecayRate = Annotated[float, Field(ge=0, lt=1)]
_Positive = Annotated[int, Field(ge=1)]
_Switch = BeforeValidator(lambda value: ("off", "on")[value] if isinstance(value, bool) else value)
"""YAML 1.1 reads a bare on or off as true or false."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduleConfig(_Section):
    """Learning rate over the run, as a share of `lr`."""

    kind: Literal["constant", "cosine", "wsd"] = Field(
        "cosine", description="shape after the warm-up; wsd: stable, then a decay over the last decay_steps"
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="linear warm-up from 0, steps; 100 if warmup_tokens is not given either"
    )
    warmup_tokens: int | None = Field(
        None, ge=0, description="the warm-up in tokens, instead of warmup_steps; rounded up to whole steps"
    )
    decay_steps: int = Field(0, ge=0, description="wsd only: length of the final decay, steps")
    decay: Literal["cosine", "linear"] = Field("cosine", description="wsd only: shape of the final decay")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="learning rate at the end, as a share of lr")

    @model_validator(mode="after")
    def _parts_belong_together(self) -> "ScheduleConfig":
        if (self.kind == "wsd") != (self.decay_steps > 0):
            raise ValueError("decay_steps must be given with kind: wsd and with no other")
        if self.decay != "cosine" and self.kind != "wsd":
            raise ValueError("decay is the shape of wsd's final decay; take it out or use kind: wsd")
        if self.warmup_tokens is not None and self.warmup_steps is not None:
            raise ValueError("warmup_steps and warmup_tokens both say how long the warm-up is; give one of them")
        return self


class GuardConfig(_Section):
    """What is done about updates that would harm the model: skipped, then gone back on, then slowed or stopped."""

    enabled: bool = Field(True, description="skip spikes and go back; updates that are not finite are skipped anyway")
    window: int = Field(128, ge=8, description="steps whose losses and gradient norms a new one is compared with")
    warmup: int = Field(32, ge=4, description="accepted steps before anything counts as a spike")
    loss_z: float = Field(
        8.0, gt=0, allow_inf_nan=False, description="a loss this many robust standard deviations above the median"
    )
    grad_norm_z: float = Field(
        12.0, gt=0, allow_inf_nan=False, description="a gradient norm this far above the median, of logarithms"
    )
    loss_rise: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="a loss this far above the lowest median so far, nats: drift"
    )
    patience: int = Field(5, ge=1, description="skipped updates in a row after which the run goes back")
    rollbacks: int = Field(3, ge=0, description="how often the run may go back; then it stops")
    recurrence: Literal["lower_lr", "stop"] = Field(
        "lower_lr", description="what to do when the run has to go back again before it got past the last trouble"
    )
    lr_factor: float = Field(
        0.5, gt=0, lt=1, description="lower_lr: the learning rate is multiplied by this from there"
    )


class FP8Config(_Section):
    """What is computed in 8-bit floating point under precision: fp8; weights, optimizer and the rest are as in bf16.

    Delayed scaling: a tensor is scaled by the largest values of the passes before (Micikevicius et al. 2022,
    arXiv:2209.05433; Transformer Engine's recipe of that name). E4M3 forward, E5M2 for gradients.
    """

    attention: Annotated[Literal["auto", "on", "off"], _Switch] = Field(
        "auto", description="products of attention; auto: where the GPU can train so, on: refused where it cannot"
    )
    linear: Annotated[Literal["on", "off"], _Switch] = Field(
        "off", description="matrices of attention and feed-forward; small models gain little"
    )
    pad_head_dim: bool = Field(
        False, description="fill heads below 128 with zeros, exactly, where the GPU trains 128 alone: more arithmetic"
    )
    margin: int = Field(0, ge=0, description="scales leave this many powers of two of room")
    amax_history: int = Field(1024, ge=1, description="passes whose largest values a scale is taken from")
    amax_from: Literal["max", "most_recent"] = Field("max", description="which of the passes counts")
    first_layers_bf16: int = Field(0, ge=0, description="so many first layers stay in bf16")
    last_layers_bf16: int = Field(0, ge=0, description="so many last layers stay in bf16")
    warmup_steps: int = Field(0, ge=0, description="so many first steps of the run are in bf16")

    @model_validator(mode="after")
    def _something_is_left(self) -> "FP8Config":
        if self.attention == "off" and self.linear == "off":
            raise ValueError("attention and linear are both off: nothing is left in FP8; use precision: bf16")
        if self.pad_head_dim and self.attention == "off":
            raise ValueError("pad_head_dim is for attention in FP8, which is off; take one out")
        return self


class RecalibrationConfig(_Section):
    """How long, how fast and on how many processes the model is trained without positional embeddings."""

    tokens: int = Field(ge=1, description="training budget, tokens; rounded down to whole steps")
    batch: int = Field(ge=1, description="global batch, sequences")
    micro_batch: _Positive | Literal["auto"] = Field(
        1, description="sequences per forward pass and data-parallel rank; auto: the most that memory is estimated for"
    )
    data_parallel: _Positive | Literal["auto"] = Field(
        1, description="data-parallel ranks; processes = this times TP; auto: as many as there are GPUs for"
    )
    lr: float = Field(gt=0, allow_inf_nan=False, description="peak learning rate")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="learning rate over the run")
    betas: tuple[_DecayRate, _DecayRate] = Field((0.9, 0.95), description="AdamW moment decay rates")
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False, description="AdamW denominator constant")
    weight_decay: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="AdamW weight decay of matrices; norms and biases never decay"
    )
    gradient_clip: float = Field(1.0, gt=0, allow_inf_nan=False, description="largest global gradient norm")
    zero_stage: Literal[1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    precision: Literal["fp32", "bf16", "fp8"] = Field(
        "bf16", description="weights and activations; fp32 masters under bf16; fp8: bf16, and parts as fp8 says"
    )
    fp8: FP8Config | None = Field(None, description="what precision: fp8 computes in FP8, and how; null: its defaults")
    layers: Literal["auto", "transformer_engine", "torch", "compiled"] = Field(
        "auto",
        description="whose layers; auto: Transformer Engine's beside a GPU where it is installed, else torch's; "
        "compiled: torch's, fused by torch.compile",
    )
    sequence_parallel: bool = Field(
        False, description="cut activations outside of attention and feed-forward along the row over the TP ranks"
    )
    recompute: Literal["none", "full"] = Field(
        "none", description="full: keep only what goes into each layer and compute the layer again in the backward pass"
    )
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    checkpoint_minutes: float | None = Field(None, gt=0, description="also a checkpoint when this long passed, minutes")
    checkpoint_async: bool = Field(
        True, description="copy the state to memory and write it while training goes on; needs that memory on the host"
    )
    keep_checkpoints: int = Field(2, ge=1, description="how many newest checkpoints are kept")
    keep_every: int | None = Field(None, ge=1, description="also keep the checkpoints of steps divisible by this")
    keep_best: bool = Field(
        False, description="also make and keep a checkpoint where the validation loss is the lowest so far"
    )
    validation_every: int = Field(500, ge=1, description="steps between validations; one more at the start and the end")
    validation_rows: int = Field(64, ge=1, description="held-out rows per validation, sequences")
    validation_lengths: tuple[_Positive, ...] = Field(
        (1,), min_length=1, description="row lengths of the validation, as multiples of the training length; 1 first"
    )
    recall_samples: int = Field(
        0, ge=0, description="validation also asks this many repeated token sequences at every length; 0: none"
    )
    position_embedding: Literal["none", "rope"] = Field(
        "none", description="none: recalibration; rope: the embedding is kept, which is ordinary pretraining"
    )
    drop_at_step: int | None = Field(
        None, ge=1, description="train with RoPE up to and with this step, then drop it; null: dropped from the start"
    )
    drop_qk_norm: Literal["none", "full", "per_head"] = Field(
        "none", description="norm of queries and keys that is put in at drop_at_step"
    )
    branch_from: Path | None = Field(
        None,
        description="checkpoint of another run that this one goes on from, e.g. runs/X/.../checkpoints/step-00001000",
    )
    guard: GuardConfig = Field(default_factory=GuardConfig, description="loss spikes and divergence")
    hang_seconds: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="a rank that makes no progress for this long ends the job, seconds",
    )
    layer_numbers_every: int = Field(
        100, ge=0, description="steps between attention-logit maxima and QK-norm weights of every layer; 0: never"
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="peak of one device for MFU, TFLOP/s; null: by the GPU's name"
    )
    wandb_project: str | None = Field(None, description="also send what goes to TensorBoard to this W&B project")
    seed: int = Field(0, ge=0, description="of every random number generator; training itself draws nothing")
    deterministic: bool = Field(False, description="refuse kernels whose sums depend on timing; slower on GPUs")
    mask_documents: bool = Field(
        False,
        description="attend only within a document, and leave the first token of each next document out of the loss",
    )
    control: bool = Field(
        False, description="also train the model with RoPE kept on the same rows: the fair in-context comparison"
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> "RecalibrationConfig":
        self._check_batch()
        if self.precision != "fp8" and self.fp8 is not None:
            raise ValueError(f"fp8 is set beside precision = {self.precision}; use precision: fp8, or take it out")
        if self.precision == "fp8" and self.layers in ("torch", "compiled"):
            raise ValueError(f"precision = fp8 needs the layers of Transformer Engine; take layers: {self.layers} out")
        if self.layers == "compiled" and (self.zero_stage == 3 or self.recompute == "full"):
            other = "zero_stage = 3" if self.zero_stage == 3 else "recompute = full"
            raise ValueError(
                f"layers = compiled beside {other}: a compiled layer cannot be gathered or computed again in parts; "
                "use layers: torch"
            )
        if self.control and self.position_embedding == "rope":
            raise ValueError("control = true beside position_embedding = rope would train the same model twice")
        if self.drop_at_step is not None and self.position_embedding == "rope":
            raise ValueError("drop_at_step beside position_embedding = rope: nothing is dropped there; take one out")
        if self.drop_qk_norm != "none" and self.drop_at_step is None:
            raise ValueError(f"drop_qk_norm = {self.drop_qk_norm} needs drop_at_step; from the start: surgery.qk_norm")
        if self.validation_lengths[0] != 1 or len(set(self.validation_lengths)) < len(self.validation_lengths):
            raise ValueError(
                "validation_lengths are different multiples of the training length, 1 first, as in [1, 2, 4]"
            )
        return self

    def _check_batch(self) -> None:
        """The known ones of micro_batch and data_parallel must divide the batch; `auto` is chosen so that it does."""
        known = [value for value in (self.micro_batch, self.data_parallel) if value != "auto"]
        per_pass = known[0] * known[-1] if len(known) == 2 else (known or [1])[0]
        if self.batch % per_pass:
            raise ValueError(
                f"batch = {self.batch} is not a multiple of micro_batch * data_parallel = {per_pass}; "
                f"use batch = {max(1, self.batch // per_pass) * per_pass}"
            )

    @property
    def dtype(self) -> Literal["fp32", "bf16"]:
        """Of weights, and of what is computed outside of FP8."""
        return "fp32" if self.precision == "fp32" else "bf16"

    def steps(self, row_length: int) -> int:
        """Whole optimizer steps in the budget."""
        return self.tokens // (self.batch * row_length)


class ResolvedTraining(RecalibrationConfig):
    """The settings of a training that is about to run: numbers in place of `auto`.

    What `layers` and `fp8` stand for is a `LayerChoice`.
    """

    micro_batch: int = Field(ge=1, description="sequences per forward pass and data-parallel rank")
    data_parallel: int = Field(ge=1, description="data-parallel ranks; processes = this times TP")

    @classmethod
    def of(cls, config: RecalibrationConfig, *, micro_batch: int, data_parallel: int) -> "ResolvedTraining":
        """These settings with these numbers, which must divide the batch."""
        return cls.model_validate({**config.model_dump(), "micro_batch": micro_batch, "data_parallel": data_parallel})

    def is_as_given(self, config: RecalibrationConfig) -> bool:
        """Whether `config` had these numbers already."""
        return (self.micro_batch, self.data_parallel) == (config.micro_batch, config.data_parallel)


OPERATIONAL = frozenset(
    {
        *("control", "micro_batch", "data_parallel", "zero_stage", "sequence_parallel", "recompute", "layers"),
        *("checkpoint_every", "checkpoint_minutes", "checkpoint_async", "keep_checkpoints", "keep_every", "keep_best"),
        *("validation_every", "validation_rows", "validation_lengths", "recall_samples"),
        *("hang_seconds", "layer_numbers_every", "peak_tflops", "wandb_project", "deterministic"),
    }
)
"""Fields that the trained weights do not depend on, but for rounding: they may change while a run is under way."""
