"""What a training is refused for before its processes start."""

from data_prep.artifact import ShardSet
from model_surgery.layout import Layout
from pipeline.errors import RecipeError
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.checkpoints.folders import complete
from pipeline.recalibration.checkpoints.intact import damage
from pipeline.recalibration.checkpoints.state import readable_state
from pipeline.recalibration.layer_agreement import this_device
from pipeline.recalibration.layer_choice import choose
from pipeline.recalibration.phases import phases, refuse_unfit
from pipeline.recalibration.validation.recall import SEQUENCE, SHORTEST_ROW
from pipeline.recalibration.wandb_sync import check_wandb
from pipeline.recipe.recalibration import RecalibrationConfig


def check(spec: TrainingSpec) -> None:
    """Raises: RecipeError if the training cannot go on from the checkpoint that it would go on from.

    Damaged ones of its own are the processes' business: they go on from the one before.
    """
    layout, shards = Layout.load(spec.layout), ShardSet.load(spec.shards)
    choose(spec.config, layout.shape, shards.row_length, this_device())
    check_validation(spec.config, shards)
    check_wandb(spec.config.wandb_project)
    own, branch = complete(spec.checkpoints), spec.config.branch_from
    if not own and branch and (problem := damage(branch)):
        raise RecipeError(f"recalibration.branch_from = {branch}: {problem}; choose another checkpoint")
    of_run = phases(spec.config, spec.position_embedding, layout, shards.row_length)
    for checkpoint in own or ([branch] if branch else []):
        refuse_unfit(checkpoint, readable_state(checkpoint), spec.config, of_run, layout, shards.row_length)


def check_validation(config: RecalibrationConfig, shards: ShardSet) -> None:
    """Raises: RecipeError if the held-out documents hold no row of a length, or rows are too short for recall."""
    most = max(source.validation.tokens for source in shards.sources)
    for multiple in config.validation_lengths:
        length = multiple * shards.row_length
        if most <= length:
            less = "" if multiple == 1 else f"take {multiple} out of recalibration.validation_lengths, or "
            raise RecipeError(
                f"validation at {multiple}x: a row of {length:,} tokens needs a source with {length + 1:,} held-out "
                f"tokens, the largest has {most:,}; {less}raise data.validation_fraction"
            )
    if config.recall_samples and shards.row_length < SHORTEST_ROW:
        raise RecipeError(
            f"recalibration.recall_samples = {config.recall_samples}: a sequence of {SEQUENCE} tokens does not fit "
            f"twice into a row of {shards.row_length}; use recall_samples = 0, or data.row_length = {SHORTEST_ROW}"
        )
