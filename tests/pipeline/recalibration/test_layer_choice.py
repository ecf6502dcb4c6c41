"""What a training computes with on which device, and what is refused."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from model_surgery.megatron.te.settings import FP8
from model_surgery.shape import ModelShape
from pipeline.errors import RecipeError
from pipeline.recalibration.layer_choice import ASSUMED, Device, choose
from pipeline.recipe.recalibration import RecalibrationConfig

H200 = Device("NVIDIA H200", (9, 0), "2.20.2", cudnn=(9, 20, 0))
B200 = replace(H200, name="NVIDIA B200", capability=(10, 0))
RTX = replace(H200, name="NVIDIA RTX PRO 6000", capability=(12, 0))
A100 = replace(H200, name="NVIDIA A100", capability=(8, 0))
NO_TE = replace(H200, transformer_engine=None, problem="not installed (extra: gpu)")
CPU = Device("a CPU", None, None, "there is no GPU")

Settings = Callable[..., RecalibrationConfig]
Shape = Callable[..., ModelShape]


@pytest.fixture(name="shape")
def _shape() -> Shape:
    def shape(head_dim: int = 128, heads: int = 32) -> ModelShape:
        sizes = {"hidden": 4096, "heads": heads, "kv_heads": heads, "ffn": 11008, "vocab": 32000, "context": 4096}
        kind = {"model_type": "llama", "layers": 32, "tied": False, "norm_eps": 1e-5, "rope_theta": 1e4}
        return ModelShape(**kind, **sizes, head_dim=head_dim)

    return shape


def fp8(settings: Settings, **changes: object) -> RecalibrationConfig:
    others = {key: changes.pop(key) for key in list(changes) if key in RecalibrationConfig.model_fields}
    return settings(precision="fp8", fp8=changes, **others)


@pytest.mark.parametrize(
    ("device", "precision", "layers", "chosen", "reason"),
    [
        (H200, "bf16", "auto", "transformer_engine", "version 2.20.2 on NVIDIA H200"),
        (A100, "bf16", "auto", "transformer_engine", "version 2.20.2 on NVIDIA A100"),
        (NO_TE, "bf16", "auto", "torch", "Transformer Engine: not installed"),
        (CPU, "bf16", "auto", "torch", "no GPU"),
        (H200, "bf16", "torch", "torch", "recalibration.layers = torch"),
        (H200, "fp32", "compiled", "compiled", "recalibration.layers = compiled"),
        (CPU, "bf16", "compiled", "compiled", "recalibration.layers = compiled"),
        (H200, "fp32", "auto", "torch", "fp32"),
        (H200, "fp32", "transformer_engine", "transformer_engine", "2.20.2"),
    ],
)
def test_layers(
    device: Device, precision: str, layers: str, chosen: str, reason: str, settings: Settings, shape: Shape
) -> None:
    choice = choose(settings(precision=precision, layers=layers), shape(), 4096, device)
    assert choice.layers == chosen and reason in choice.layers_reason
    assert choice.fp8(settings()) is None and "attention" not in str(choice)


@pytest.mark.parametrize(("device", "why"), [(CPU, "no GPU"), (NO_TE, "not installed")])
def test_layers_that_are_not_there_are_refused(device: Device, why: str, settings: Settings, shape: Shape) -> None:
    with pytest.raises(RecipeError, match=rf"layers = transformer_engine: .*{why}.*; use auto or torch"):
        choose(settings(layers="transformer_engine"), shape(), 4096, device)


@pytest.mark.parametrize(
    ("device", "head_dim", "changes", "why"),
    [
        (H200, 128, {}, None),
        (ASSUMED, 128, {}, None),
        (H200, 64, {}, "trains heads of 128 in FP8 alone, the model has 64; recalibration.fp8.pad_head_dim = true"),
        (H200, 64, {"pad_head_dim": True}, None),
        (H200, 256, {}, "the model has 256; use bf16"),
        (B200, 64, {}, None),
        (B200, 256, {}, "multiples of 16 up to 128"),
        (B200, 40, {}, "heads of 40: there are kernels for multiples of 16"),
        (RTX, 128, {}, "RTX PRO 6000 has no kernel for it"),
        (A100, 128, {}, r"NVIDIA A100 has compute capability 8.0, it takes 9.0 \(Hopper\)"),
        (NO_TE, 128, {}, "Transformer Engine: not installed"),
        (CPU, 128, {}, "there is no GPU"),
        (H200, 128, {"mask_documents": True}, r"attention within documents \(mask_documents\)"),
        (replace(H200, cudnn=(9, 10, 0)), 128, {}, "cuDNN 9.10.0 has no kernel that is right"),
        (replace(H200, cudnn=(9, 1, 0)), 128, {}, "use 9.7 or later, but not 9.10.0"),
        (replace(H200, cudnn=(9, 5, 0)), 128, {}, None),
        (replace(H200, cudnn=(9, 18, 0)), 128, {"deterministic": True}, "no deterministic kernel for it; use 9.19"),
        (H200, 128, {"deterministic": True}, None),
    ],
)
def test_attention_in_fp8(
    device: Device, head_dim: int, changes: dict[str, object], why: str | None, settings: Settings, shape: Shape
) -> None:
    """auto says why not, on is refused for the same reason."""
    model = shape(head_dim)
    choice = choose(fp8(settings, **changes), model, 4096, device)
    assert choice.fp8_attention == (why is None)
    config = fp8(settings, attention="on", **changes)
    if why is None:
        assert choose(config, model, 4096, device).fp8_attention
        assert "attention in FP8 (heads of" in str(choice)
        return
    assert choice.fp8(fp8(settings)) is None and "attention in bf16" in str(choice)
    with pytest.raises(RecipeError, match=f"recalibration.fp8.attention = on: .*{why}"):
        choose(config, model, 4096, device)
    assert re.search(why, choice.fp8_attention_reason)


def test_rows_that_an_older_kernel_does_not_take(settings: Settings, shape: Shape) -> None:
    device = replace(H200, cudnn=(9, 5, 0))
    assert "rows of a multiple of 128 tokens, data.row_length is 1000" in (
        choose(fp8(settings), shape(), 1000, device).fp8_attention_reason
    )
    assert choose(fp8(settings), shape(), 1000, H200).fp8_attention


def test_matrices_in_fp8(settings: Settings, shape: Shape) -> None:
    choice = choose(fp8(settings, attention="off", linear="on"), shape(64), 2048, H200)
    assert (choice.fp8_attention, choice.fp8_linear) == (False, True)
    assert choice.fp8_attention_reason == "recalibration.fp8.attention = off"
    for device, why in ((A100, r"has compute capability 8\.0"), (CPU, "no GPU"), (NO_TE, "not installed")):
        with pytest.raises(RecipeError, match=rf"fp8.linear = on: .*{why}.*; use off"):
            choose(fp8(settings, linear="on"), shape(), 2048, device)
    with pytest.raises(RecipeError, match=r"micro_batch x data.row_length = 2002 tokens is not a multiple of 16"):
        choose(fp8(settings, linear="on", micro_batch=2), shape(), 1001, H200)


def test_the_model_s_settings(settings: Settings, shape: Shape) -> None:
    config = fp8(
        settings, attention="on", linear="on", margin=1, amax_history=16, amax_from="most_recent",
        first_layers_bf16=2, last_layers_bf16=3, pad_head_dim=True,
    )  # fmt: skip
    choice = choose(config, shape(64), 2048, H200).fp8(config)
    assert choice == FP8(True, True, True, 1, 16, "most_recent", 2, 3)
    assert (choice.head_dim(64), choice.head_dim(128), replace(choice, attention=False).head_dim(64)) == (128, 128, 64)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"first_layers_bf16": 20, "last_layers_bf16": 12}, "= 32 of 32 layers leave none"),
        ({"recompute": "full"}, "recompute = full beside precision = fp8"),
    ],
)
def test_what_no_device_can_do(changes: dict[str, object], why: str, settings: Settings, shape: Shape) -> None:
    with pytest.raises(RecipeError, match=why):
        choose(fp8(settings, **changes), shape(), 4096, H200)


def test_settings_of_a_recipe(settings: Settings) -> None:
    assert (
        fp8(settings, attention=True, linear=False).fp8 == fp8(settings, attention="on", linear="off").fp8
    )  # YAML 1.1
    assert fp8(settings).dtype == settings(precision="bf16").dtype == "bf16"
    assert settings().fp8 is None
    for changes, why in (
        ({"precision": "bf16", "fp8": {}}, "fp8 is set beside precision = bf16"),
        ({"precision": "fp8", "layers": "torch"}, "needs the layers of Transformer Engine; take layers: torch out"),
        ({"precision": "fp8", "layers": "compiled"}, "take layers: compiled out"),
        ({"layers": "compiled", "zero_stage": 3}, "layers = compiled beside zero_stage = 3: .*; use layers: torch"),
        ({"layers": "compiled", "recompute": "full"}, "layers = compiled beside recompute = full: .*; use"),
        ({"precision": "fp8", "fp8": {"attention": "off"}}, "attention and linear are both off"),
        (
            {"precision": "fp8", "fp8": {"attention": "off", "linear": "on", "pad_head_dim": True}},
            "pad_head_dim is for",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            settings(**changes)
