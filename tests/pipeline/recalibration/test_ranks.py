"""What auto becomes, as pure arithmetic."""

import os

import pytest

from model_surgery.known_models import KNOWN_MODELS
from model_surgery.shape import ModelShape
from pipeline.errors import RecipeError
from pipeline.launch.devices import device_memory
from pipeline.recalibration.ranks import USABLE, estimate, resolve
from pipeline.recipe.recalibration import RecalibrationConfig, ResolvedTraining

LLAMA = KNOWN_MODELS["meta-llama/Llama-2-7b-hf"]
SMOLLM = KNOWN_MODELS["HuggingFaceTB/SmolLM-360M"]
GPU = 80_000_000_000


def settings(**changes: object) -> RecalibrationConfig:
    values: dict[str, object] = {"tokens": 1, "batch": 512, "lr": 1e-4}
    return RecalibrationConfig.model_validate(values | changes)


def chosen(
    shape: ModelShape = LLAMA,
    *,
    tensor_parallel: int = 1,
    gpus: int = 8,
    memory: int = GPU,
    row_length: int = 4096,
    **changes: object,
) -> ResolvedTraining:
    sizes = {"tensor_parallel": tensor_parallel, "row_length": row_length}
    return resolve(settings(**changes), shape, **sizes, slots=gpus, memory_bytes=memory)


def test_numbers_stay_as_they_are() -> None:
    config = settings(data_parallel=4, micro_batch=2)
    sizes = {"tensor_parallel": 1, "row_length": 4096}
    resolved = resolve(config, LLAMA, **sizes, slots=0, memory_bytes=1)
    assert resolved.is_as_given(config) and resolved.model_dump_json() == config.model_dump_json()


@pytest.mark.parametrize(
    ("gpus", "tensor_parallel", "batch", "micro_batch", "ranks"),
    [(8, 1, 512, 1, 8), (8, 2, 512, 1, 4), (6, 1, 512, 1, 4), (6, 1, 48, 1, 6), (8, 1, 24, 6, 4), (0, 2, 512, 1, 1)],
)
def test_data_parallel_is_the_most_that_the_batch_divides_by(
    gpus: int, tensor_parallel: int, batch: int, micro_batch: int, ranks: int
) -> None:
    config = chosen(
        gpus=gpus, tensor_parallel=tensor_parallel, batch=batch, micro_batch=micro_batch, data_parallel="auto"
    )
    assert (config.data_parallel, config.micro_batch) == (ranks, micro_batch)


def test_micro_batch_is_the_most_that_fits() -> None:
    config = chosen(SMOLLM, row_length=2048, micro_batch="auto", data_parallel="auto")
    assert config.data_parallel == 8
    more = config.model_copy(update={"micro_batch": 2 * config.micro_batch})
    used, too_much = (estimate(each, SMOLLM, 1, 2048).total for each in (config, more))
    assert used <= USABLE * GPU < too_much
    assert 512 // 8 % config.micro_batch == 0
    again = chosen(SMOLLM, row_length=2048, micro_batch="auto", data_parallel="auto", recompute="full")
    assert again.micro_batch > config.micro_batch
    small = chosen(SMOLLM, row_length=2048, micro_batch="auto", batch=3, data_parallel=1)
    assert small.micro_batch == 3  # all there are


def test_a_norm_that_the_drop_puts_in_takes_memory_too() -> None:
    plain, normed = chosen(drop_at_step=1), chosen(drop_at_step=1, drop_qk_norm="full")
    assert estimate(normed, LLAMA, 1, 4096).activations > estimate(plain, LLAMA, 1, 4096).activations


def test_without_gpus_ranks_share_the_memory_of_the_machine() -> None:
    cases = {"row_length": 2048, "micro_batch": "auto", "batch": 64}
    alone = chosen(SMOLLM, gpus=0, memory=GPU, **cases)
    shared = chosen(SMOLLM, gpus=0, memory=4 * GPU, data_parallel=2, tensor_parallel=2, **cases)
    of_one_gpu = chosen(SMOLLM, gpus=4, memory=GPU, data_parallel=2, tensor_parallel=2, **cases)
    assert shared.micro_batch == of_one_gpu.micro_batch
    assert alone.data_parallel == 1
    assert device_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_what_does_not_fit_is_refused_with_a_way_that_does() -> None:
    with pytest.raises(RecipeError) as error:
        chosen(micro_batch="auto", data_parallel=64, gpus=64, memory=24_000_000_000)
    assert "one row of 4,096 tokens takes an estimated 55.6 GiB, and a rank has 22.4 GiB" in str(error.value)
    assert "use recalibration.recompute = full and recalibration.zero_stage = 3 (" in str(error.value)
    with pytest.raises(RecipeError, match=r"are used; use a surgery\.tensor_parallel above 1$"):
        chosen(micro_batch="auto", gpus=1, memory=24_000_000_000)


def test_rows_must_divide_for_sequence_parallelism() -> None:
    with pytest.raises(RecipeError, match=r"data\.row_length = 33 is not a multiple of .*parallel = 2; use 32$"):
        chosen(sequence_parallel=True, tensor_parallel=2, row_length=33)
    assert chosen(sequence_parallel=True, tensor_parallel=1, row_length=33).sequence_parallel
    assert chosen(tensor_parallel=2, row_length=33).micro_batch == 1
