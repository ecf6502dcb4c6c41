"""Whose layers a training uses, and what of them is computed in FP8: decided by rules that `drope plan` can apply too.

The rules for attention are Transformer Engine's (version 2.20, common/fused_attn/fused_attn.cpp), which has one kernel
for it in training, cuDNN's. On the GPU itself a pass forward and backward has the last word.
"""

from dataclasses import dataclass, fields
from typing import Literal

from model_surgery.megatron.te.settings import FILLED_HEAD_DIM, FP8
from model_surgery.shape import ModelShape
from pipeline.errors import RecipeError
from pipeline.recipe.recalibration import FP8Config, RecalibrationConfig

Layers = Literal["torch", "compiled", "transformer_engine"]
_HOPPER, _BLACKWELL = (9, 0), (10, 0)
_TOKENS = 16
"""Matrices in FP8 must have sizes that this divides."""


@dataclass(frozen=True)
class Device:
    """What decides, of one rank's device."""

    name: str
    capability: tuple[int, int] | None
    """Compute capability; None for a CPU."""
    transformer_engine: str | None
    """Its version; None where it cannot be used."""
    problem: str = ""
    """Why it cannot be used."""
    cudnn: tuple[int, int, int] | None = None


ASSUMED = Device("Hopper (assumed, no GPU is here)", _HOPPER, "2.20", cudnn=(9, 20, 0))
"""What `drope plan` takes for granted on a machine without a GPU."""


@dataclass(frozen=True)
class LayerChoice:
    """What a training computes with, and why."""

    layers: Layers
    layers_reason: str
    fp8_attention: bool = False
    fp8_attention_reason: str = ""
    """Empty where FP8 was not asked for."""
    fp8_linear: bool = False

    def __str__(self) -> str:
        named = {"torch": "torch's", "compiled": "torch's compiled", "transformer_engine": "Transformer Engine's"}
        parts = [f"{named[self.layers]} layers ({self.layers_reason})"]
        if self.fp8_attention_reason:
            parts.append(f"attention in {'FP8' if self.fp8_attention else 'bf16'} ({self.fp8_attention_reason})")
            parts.append(f"matrices in {'FP8' if self.fp8_linear else 'bf16'}")
        return ", ".join(parts)

    def without_fp8_attention(self, reason: str) -> "LayerChoice":
        return LayerChoice(self.layers, self.layers_reason, False, reason, self.fp8_linear)

    def fp8(self, config: RecalibrationConfig) -> FP8 | None:
        """The settings of the model; None where nothing is in FP8."""
        if not (self.fp8_attention or self.fp8_linear):
            return None
        settings = config.fp8 or FP8Config()
        return FP8(
            attention=self.fp8_attention,
            linear=self.fp8_linear,
            pad_head_dim=settings.pad_head_dim,
            margin=settings.margin,
            amax_history=settings.amax_history,
            amax_from=settings.amax_from,
            first_layers_bf16=settings.first_layers_bf16,
            last_layers_bf16=settings.last_layers_bf16,
        )


CHOICE_FIELDS = tuple(field.name for field in fields(LayerChoice))
PLAIN = LayerChoice("torch", "")
"""Layers that run everywhere."""


def choose(config: RecalibrationConfig, shape: ModelShape, row_length: int, device: Device) -> LayerChoice:
    """Applies the rules to a device.

    Raises: RecipeError, with the reason and the way out, if the recipe asks for what cannot be had there.
    """
    layers, reason = _layers(config, device)
    if config.precision != "fp8":
        return LayerChoice(layers, reason)
    fp8 = config.fp8 or FP8Config()
    _check_fp8(config, fp8, shape, row_length)
    if fp8.linear == "on" and (against := _against_any(device)):
        raise RecipeError(f"recalibration.fp8.linear = on: {against}; use off")
    if fp8.attention == "off":
        return LayerChoice(layers, reason, False, "recalibration.fp8.attention = off", fp8.linear == "on")
    against = against_attention(config, fp8, shape, row_length, device)
    if against and fp8.attention == "on":
        raise RecipeError(f"recalibration.fp8.attention = on: {against}")
    if against:
        return LayerChoice(layers, reason, False, against, fp8.linear == "on")
    return LayerChoice(layers, reason, True, f"heads of {_width(fp8, shape)} on {device.name}", fp8.linear == "on")


def against_attention(
    config: RecalibrationConfig, fp8: FP8Config, shape: ModelShape, row_length: int, device: Device
) -> str:
    """Why attention cannot be trained in FP8 on this device, with the way out; empty if it can."""
    if config.mask_documents:
        return "there is no kernel in FP8 for attention within documents (mask_documents); use bf16 for it"
    if (reason := _against_any(device)) or device.capability is None:
        return reason
    capability, cudnn, width = device.capability, device.cudnn or (0, 0, 0), _width(fp8, shape)
    name = f"cuDNN {'.'.join(map(str, cudnn))}"
    if capability >= (12, 0):
        return f"{device.name} has no kernel for it"
    if cudnn < (9, 2, 1) or cudnn == (9, 10, 0):
        return f"{name} has no kernel that is right; use 9.7 or later, but not 9.10.0"
    if config.deterministic and cudnn < (9, 19, 0):
        return f"{name} has no deterministic kernel for it; use 9.19 or later, or recalibration.deterministic = false"
    if capability < _BLACKWELL and width != FILLED_HEAD_DIM:
        fill = "recalibration.fp8.pad_head_dim = true fills them up at the cost of more arithmetic"
        more = f"; {fill}" if width < FILLED_HEAD_DIM else "; use bf16 for it"
        return f"{device.name} trains heads of {FILLED_HEAD_DIM} in FP8 alone, the model has {shape.head_dim}{more}"
    if width > FILLED_HEAD_DIM or width % 16:
        return f"heads of {width}: there are kernels for multiples of 16 up to {FILLED_HEAD_DIM}; use bf16 for it"
    if cudnn < (9, 7, 0) and row_length % 128:
        return f"{name} takes rows of a multiple of 128 tokens, data.row_length is {row_length}; use cuDNN 9.7 or later"
    return ""


def _layers(config: RecalibrationConfig, device: Device) -> tuple[Layers, str]:
    if config.layers in ("torch", "compiled"):
        return config.layers, f"recalibration.layers = {config.layers}"
    if config.precision == "fp32" and config.layers == "auto":
        return "torch", "fp32"
    if device.capability is None or device.transformer_engine is None:
        problem = "no GPU" if device.capability is None else f"Transformer Engine: {device.problem}"
        if config.layers == "transformer_engine":
            raise RecipeError(f"recalibration.layers = transformer_engine: {problem}; use auto or torch")
        return "torch", problem
    return "transformer_engine", f"version {device.transformer_engine} on {device.name}"


def _check_fp8(config: RecalibrationConfig, fp8: FP8Config, shape: ModelShape, row_length: int) -> None:
    """Raises: RecipeError for what no device can do."""
    if config.recompute == "full":
        raise RecipeError(
            "recalibration.recompute = full beside precision = fp8: a layer that is computed twice would count its "
            "largest values twice; use recompute: none with a smaller micro_batch, or precision: bf16"
        )
    in_bf16 = fp8.first_layers_bf16 + fp8.last_layers_bf16
    if in_bf16 >= shape.layers:
        raise RecipeError(
            f"recalibration.fp8: first_layers_bf16 + last_layers_bf16 = {in_bf16} of {shape.layers} layers leave none; "
            "lower them, or use precision: bf16"
        )
    rows = 1 if config.micro_batch == "auto" else config.micro_batch
    if fp8.linear == "on" and rows * row_length % _TOKENS:
        raise RecipeError(
            f"recalibration.fp8.linear = on: micro_batch x data.row_length = {rows * row_length} tokens is not a "
            f"multiple of {_TOKENS}; change one of them, or use linear: off"
        )


def _against_any(device: Device) -> str:
    """Why nothing can be computed in FP8 on this device; empty if something can."""
    if device.capability is None:
        return "there is no GPU"
    if device.capability < _HOPPER:
        return (
            f"{device.name} has compute capability {device.capability[0]}.{device.capability[1]}, it takes 9.0 (Hopper)"
        )
    return f"Transformer Engine: {device.problem}" if device.transformer_engine is None else ""


def _width(fp8: FP8Config, shape: ModelShape) -> int:
    return FP8(attention=True, linear=False, pad_head_dim=fp8.pad_head_dim).head_dim(shape.head_dim)
