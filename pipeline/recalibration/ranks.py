"""How many ranks, and how many rows at once on each: what `auto` stands for in a recipe."""

from model_surgery.shape import ModelShape
from pipeline.errors import RecipeError
from pipeline.recalibration.memory import GIB, TrainingMemory, training_memory
from pipeline.recipe.recalibration import RecalibrationConfig, ResolvedTraining

USABLE = 0.9
"""Share of a device's memory that an estimate may take; the rest is CUDA's, NCCL's and the allocator's."""


def resolve(
    config: RecalibrationConfig,
    shape: ModelShape,
    *,
    tensor_parallel: int,
    row_length: int,
    slots: int,
    memory_bytes: int,
) -> ResolvedTraining:
    """The settings with numbers for data_parallel and micro_batch. Where both are numbers, nothing but checks.

    data_parallel = auto: as many ranks as there are slots for and the batch divides by; one without slots.
    micro_batch = auto: the most rows whose estimated memory is below `USABLE` of a rank's. `slots` and `memory_bytes`
    are those of `pipeline.launch.machines.Machines`.

    Raises: RecipeError if not even one row fits, or rows do not divide for sequence parallelism.
    """
    check_row_length(config, tensor_parallel, row_length)
    ranks = config.data_parallel
    if ranks == "auto":
        rows_known = 1 if config.micro_batch == "auto" else config.micro_batch
        ranks = _largest_divisor(config.batch // rows_known, max(1, slots // tensor_parallel))
    if config.micro_batch != "auto":
        return ResolvedTraining.of(config, micro_batch=config.micro_batch, data_parallel=ranks)
    of_rank = memory_bytes if slots else memory_bytes // (tensor_parallel * ranks)
    candidates = [
        ResolvedTraining.of(config, micro_batch=rows, data_parallel=ranks) for rows in _divisors(config.batch // ranks)
    ]
    for candidate in reversed(candidates):
        if estimate(candidate, shape, tensor_parallel, row_length).total <= USABLE * of_rank:
            return candidate
    raise RecipeError(_does_not_fit(candidates[0], shape, tensor_parallel, row_length, of_rank))


def estimate(config: ResolvedTraining, shape: ModelShape, tensor_parallel: int, row_length: int) -> TrainingMemory:
    """The most that a phase needs: a norm of queries and keys that is put in at the drop counts from the start."""
    if config.drop_qk_norm != "none":
        shape = shape.model_copy(update={"q_norm": config.drop_qk_norm, "k_norm": config.drop_qk_norm})
    return training_memory(shape, config, tensor_parallel=tensor_parallel, length=row_length)


def check_row_length(config: RecalibrationConfig, tensor_parallel: int, row_length: int) -> None:
    """Raises: RecipeError if sequence parallelism cannot cut rows of this length into equal parts."""
    if config.sequence_parallel and row_length % tensor_parallel:
        fitting = max(1, row_length // tensor_parallel) * tensor_parallel
        raise RecipeError(
            f"recalibration.sequence_parallel: data.row_length = {row_length} is not a multiple of "
            f"surgery.tensor_parallel = {tensor_parallel}; use {fitting}"
        )


def _does_not_fit(
    config: ResolvedTraining, shape: ModelShape, tensor_parallel: int, row_length: int, memory_bytes: int
) -> str:
    """What is wrong with this micro batch of one row, and the settings under which it would fit."""
    needed = estimate(config, shape, tensor_parallel, row_length).total
    ways = [f"a surgery.tensor_parallel above {tensor_parallel}"]
    possible: tuple[dict[str, str | int], ...] = (
        {"recompute": "full"},
        {"zero_stage": 3},
        {"recompute": "full", "zero_stage": 3},
    )
    for changes in possible:
        less = estimate(config.model_copy(update=changes), shape, tensor_parallel, row_length).total
        if less <= USABLE * memory_bytes:
            settings = " and ".join(f"recalibration.{field} = {value}" for field, value in changes.items())
            ways.insert(0, f"{settings} ({less / GIB:.1f} GiB)")
            break
    return (
        f"recalibration.micro_batch = auto: one row of {row_length:,} tokens takes an estimated "
        f"{needed / GIB:.1f} GiB, and a rank has {memory_bytes / GIB:.1f} GiB, of which {USABLE:.0%} are used; use "
        + " or ".join(ways)
    )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _largest_divisor(number: int, limit: int) -> int:
    return max(divisor for divisor in _divisors(number) if divisor <= limit)
