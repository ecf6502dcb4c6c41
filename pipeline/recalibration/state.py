"""What a training checkpoint says of itself, in state.json beside its tensors."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from model_surgery.layout import ORIGIN, Layout
from model_surgery.shape import ModelShape
from pipeline.errors import RecipeError
from pipeline.recalibration.config import RecalibrationConfig

STATE_FILE = "state.json"

WEIGHTS, MOMENTS = "weights", ("exp_avg", "exp_avg_sq")
PARTS = (WEIGHTS, *MOMENTS)
"""The fp32 master weights, and Adam's running means of gradients and of their squares."""


class _State(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    step: int = Field(ge=1)
    tokens: int = Field(ge=1)
    """Tokens trained on so far; the position in the data follows from the step."""
    tensor_parallel: int = Field(ge=1)
    position_embedding: Literal["none", "rope"]
    shape: ModelShape
    source: str
    source_fingerprint: str
    source_position_embedding: Literal["none", "rope"]
    inserted_norms: Literal["ones", "calibrated"] | None

    @property
    def origin(self) -> dict[str, str | None]:
        """What a layout that is made from this checkpoint says of its source, as `Layout.origin`."""
        return {name: getattr(self, name) for name in ORIGIN}


class DeepSpeedState(_State):
    """A checkpoint in DeepSpeed's files: only the same ranks at the same ZeRO stage can go on with it."""

    format: Literal["deepspeed"] = "deepspeed"
    data_parallel: int = Field(ge=1)
    zero_stage: Literal[1, 2, 3]


class PortableState(_State):
    """A checkpoint in three layouts, which depends on neither the number of data-parallel ranks nor the ZeRO stage."""

    format: Literal["portable"] = "portable"
    updates: int = Field(ge=0)
    """Updates that Adam has made: its bias correction depends on them."""
    digests: dict[str, str]
    """Digest of every layout by its folder."""


State = DeepSpeedState | PortableState
_ANY_STATE: TypeAdapter[State] = TypeAdapter(Annotated[State, Field(discriminator="format")])


def read_state(folder: Path) -> State | None:
    """The state.json of a checkpoint; None if there is none, as in checkpoints of earlier versions.

    Raises: RecipeError if it is not valid.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        return _ANY_STATE.validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise RecipeError(f"{path}: not the state of a checkpoint: {where}: {problem['msg']}") from error


def refuse_unfit(
    checkpoint: Path, config: RecalibrationConfig, position_embedding: str, layout: Layout, row_length: int
) -> None:
    """Raises: RecipeError if a training of `layout` with these settings must not go on from the checkpoint."""
    state = read_state(checkpoint)
    if state is None:
        return
    if state.shape != layout.shape or state.source_fingerprint != layout.source_fingerprint:
        raise RecipeError(f"{checkpoint}: of another model ({state.source}) than this training's ({layout.source})")
    if state.position_embedding != position_embedding:
        raise RecipeError(f"{checkpoint}: of a training with position_embedding = {state.position_embedding}")
    wanted = (layout.tensor_parallel, config.data_parallel, config.zero_stage)
    if isinstance(state, DeepSpeedState):
        stored, names = (state.tensor_parallel, state.data_parallel, state.zero_stage), "TP, DP and ZeRO stage"
    else:
        stored, wanted, names = (state.tensor_parallel,), wanted[:1], "TP"
    if stored != wanted:
        raise RecipeError(
            f"{checkpoint}: is for {names} {_listed(stored)}, this training has {_listed(wanted)}; make a checkpoint "
            f"for it by drope reshard {checkpoint} --tensor-parallel {layout.tensor_parallel} --out FOLDER"
        )
    tokens, steps = state.step * config.batch * row_length, config.steps(row_length)
    if state.tokens != tokens:
        raise RecipeError(
            f"{checkpoint}: {state.tokens:,} tokens in {state.step:,} steps, but {tokens:,} with this batch and row "
            "length; what was trained on would be lost count of"
        )
    if state.step >= steps:
        raise RecipeError(f"{checkpoint}: of step {state.step:,}, and recalibration.tokens is enough for {steps:,}")


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
