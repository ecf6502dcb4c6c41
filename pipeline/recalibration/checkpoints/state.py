"""What a training checkpoint says of itself, in state.json beside its tensors."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from model_surgery.layout import Origin
from model_surgery.shape import ModelShape
from pipeline.errors import RecipeError

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
    calm: bool = True
    """Whether the update of this step was made: the guard goes back to calm ones only."""
    rollbacks: int = Field(0, ge=0)
    """How often the run had gone back when this was saved: one that a later return passed over is not gone on with."""

    @property
    def origin(self) -> Origin:
        """What a layout that is made from this checkpoint says of its source, as `Layout.origin`."""
        return Origin(
            source=self.source,
            source_fingerprint=self.source_fingerprint,
            source_position_embedding=self.source_position_embedding,
            inserted_norms=self.inserted_norms,
        )


class StoredFile(BaseModel):
    """A file of a checkpoint as it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class DeepSpeedState(_State):
    """A checkpoint in DeepSpeed's files, one per rank: the same ranks at the same ZeRO stage read it fastest."""

    format: Literal["deepspeed"] = "deepspeed"
    data_parallel: int = Field(ge=1)
    zero_stage: Literal[1, 2, 3]
    precision: Literal["fp32", "bf16"] | None = None
    files: dict[str, StoredFile] = Field(default_factory=dict)
    """By name; empty in checkpoints of earlier versions."""


class PortableState(_State):
    """A checkpoint in three layouts, which depends on neither the number of data-parallel ranks nor the ZeRO stage."""

    format: Literal["portable"] = "portable"
    updates: int = Field(ge=0)
    """Updates that Adam has made: its bias correction depends on them."""
    digests: dict[str, str]
    """Digest of every layout by its folder, and of the scales of FP8 by their file where there are some."""


State = DeepSpeedState | PortableState
_ANY_STATE: TypeAdapter[State] = TypeAdapter(Annotated[State, Field(discriminator="format")])


def readable_state(folder: Path) -> State | None:
    """The state.json of a checkpoint; None also if it is damaged, for those who look at several checkpoints."""
    try:
        return read_state(folder)
    except RecipeError:
        return None


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
