"""The choice of layers on the devices of a training: tried out on every rank, and the same on all of them."""

import torch

from model_surgery.megatron.te import availability
from model_surgery.shape import ModelShape
from pipeline.errors import RecipeError
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.layer_choice import ASSUMED, Device, LayerChoice, choose


def this_device() -> Device:
    """What decides, of the GPU that this process uses, or of a machine without one."""
    if not torch.cuda.is_available():
        return Device("a CPU", None, None, "there is no GPU")
    engine = availability.find()
    return Device(
        name=torch.cuda.get_device_name(),
        capability=torch.cuda.get_device_capability(),
        transformer_engine=engine.version,
        problem=engine.problem,
        cudnn=availability.cudnn_version() if engine.version else None,
    )


def device_to_plan_for() -> Device:
    """The GPU of this machine; without one, one of the kind that is assumed."""
    return this_device() if torch.cuda.is_available() else ASSUMED


def agree(spec: TrainingSpec, shape: ModelShape, row_length: int) -> LayerChoice:
    """What all ranks compute with. All ranks must call it.

    Raises: RecipeError on all of them if one cannot do what the recipe asks for.
    """
    own = _tried(spec, shape, row_length)
    ranks: list[LayerChoice | str] = [own] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, own)
    for refusal in ranks:
        if isinstance(refusal, str):
            raise RecipeError(refusal)
    choices = [choice for choice in ranks if isinstance(choice, LayerChoice)]
    if len({choice.layers for choice in choices}) > 1:
        torchs = next(choice for choice in choices if choice.layers == "torch")
        raise RecipeError(
            f"recalibration.layers = auto: not all ranks have Transformer Engine ({torchs.layers_reason}); install it "
            "on all nodes, or use layers: torch"
        )
    # One that cannot compute attention in FP8 keeps all others from it.
    return next((choice for choice in choices if not choice.fp8_attention), choices[torch.distributed.get_rank()])


def _tried(spec: TrainingSpec, shape: ModelShape, row_length: int) -> LayerChoice | str:
    """This rank's choice, or why there is none."""
    try:
        choice = choose(spec.config, shape, row_length, this_device())
    except RecipeError as error:
        return str(error)
    if choice.layers == "compiled":
        from model_surgery.megatron.compiled import reason_against as of_compiler

        reason = of_compiler()
        return f"recalibration.layers = compiled: torch.compile: {reason}; use auto or torch" if reason else choice
    settings = choice.fp8(spec.config)
    if settings is None or not choice.fp8_attention:
        return choice
    from model_surgery.megatron.te.trial import reason_against

    local, ranks = shape.padded(spec.tensor_parallel), spec.tensor_parallel
    reason = reason_against(
        heads=local.heads // ranks,
        kv_heads=local.kv_heads // ranks,
        head_dim=settings.head_dim(shape.head_dim),
        length=row_length,
    )
    if reason is None:
        return choice
    if spec.config.fp8 and spec.config.fp8.attention == "on":
        return f"recalibration.fp8.attention = on: it does not run on {this_device().name}: {reason}; use auto or off"
    return choice.without_fp8_attention(f"it does not run on {this_device().name}: {reason}")
