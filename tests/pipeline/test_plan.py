"""The plan's arithmetic against published formulas and real models, and its refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_surgery.errors import SurgeryError
from model_surgery.known_models import KNOWN_MODELS
from pipeline.errors import RecipeError
from pipeline.memory import activation_values, training_flops, training_memory
from pipeline.plan import make_plan
from pipeline.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LLAMA = KNOWN_MODELS["meta-llama/Llama-2-7b-hf"]


def test_model_states_follow_the_zero_paper() -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5B weights, 64 ranks, K = 12: 120, 31.4, 16.6 and 1.9 GB."""
    gigabytes = []
    for stage in (0, 1, 2, 3):
        memory = training_memory(
            LLAMA,
            tensor_parallel=1,
            data_parallel=64,
            zero_stage=stage,
            bytes_per_value=2,
            bytes_per_gradient=2,
            micro_batch=1,
            length=1,
        )
        states = memory.weights + memory.gradients + memory.optimizer
        gigabytes.append(states / LLAMA.parameters * 7.5)
    assert gigabytes == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)


def test_activations_are_what_autograd_saves() -> None:
    """Bytes that torch keeps for backward in one block of transformers' Llama; it fuses less, so within a third."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    shape = KNOWN_MODELS["HuggingFaceTB/SmolLM-360M"].model_copy(update={"hidden": 256, "heads": 4, "kv_heads": 2})
    shape = shape.model_copy(update={"ffn": 704})
    config = LlamaConfig(
        hidden_size=256, intermediate_size=704, num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa"
    )
    layer, tokens = LlamaDecoderLayer(config, 0), 128
    hidden = torch.randn(1, tokens, 256, requires_grad=True)
    positions = LlamaRotaryEmbedding(config)(hidden, torch.arange(tokens)[None])
    weights = {parameter.data_ptr() for parameter in layer.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in weights and tensor.numel() > tokens * 4:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(hidden, position_embeddings=positions)
    assert out is not None
    estimate = activation_values(shape, 1) * tokens * 4
    assert estimate == pytest.approx(sum(saved.values()), rel=0.35)


def test_flops_are_six_per_weight_and_token_plus_attention() -> None:
    matrices = LLAMA.parameters - LLAMA.vocab * LLAMA.hidden
    assert training_flops(LLAMA, tokens=10, length=4096) == 10 * (6 * matrices + 6 * 32 * 4096 * 4096)


def test_published_recipes_plan_without_network_and_write_nothing(drope: Any, tmp_path: Path) -> None:
    for name, gpus in (("smollm-360m", 8), ("smollm-1.7b", 8), ("llama2-7b", 32)):
        result = drope("plan", RECIPES / f"{name}.yaml", "--json", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        plan = json.loads(result.stdout)
        assert plan["gpus"] == gpus
        assert plan["memory_per_gpu"]["total"] < 80e9
        assert plan["unchecked"]
    assert list(tmp_path.iterdir()) == []


def test_the_plan_says_how_often_the_data_are_read() -> None:
    assert make_plan(load_recipe(RECIPES / "llama2-7b.yaml", ())).epochs == pytest.approx(10_485_760_000 / 10.5e9)
    longer = load_recipe(RECIPES / "llama2-7b.yaml", ("recalibration.tokens=20971520000",))
    assert "2.00 epochs of the data" in make_plan(longer).as_text()
    assert make_plan(load_recipe(RECIPES / "llama2-7b.yaml", ("data.tokens=null",))).epochs is None


def test_heads_that_do_not_divide_are_padded_and_the_plan_says_so() -> None:
    plan = make_plan(load_recipe(RECIPES / "smollm-360m.yaml", ("surgery.tensor_parallel=2",)))
    assert plan.padding == "padded with zeros: query heads 15 -> 18, KV heads 5 -> 6 (+4.3% weights)"
    assert plan.padding in plan.as_text()
    assert plan.as_dict()["padding"] == plan.padding
    assert make_plan(load_recipe(RECIPES / "smollm-360m.yaml")).padding == ""
    with pytest.raises(SurgeryError, match=r"surgery\.tensor_parallel = 16: .* has 15 query heads; use 15 or less"):
        make_plan(load_recipe(RECIPES / "smollm-360m.yaml", ("surgery.tensor_parallel=16",)))


def test_norms_of_queries_and_keys_are_counted() -> None:
    plain, normed = (
        make_plan(load_recipe(RECIPES / "llama2-7b.yaml", (f"surgery.qk_norm={kind}",))) for kind in ("none", "full")
    )
    assert normed.shape.parameters - plain.shape.parameters == 32 * 2 * 4096
    assert normed.memory.activations > plain.memory.activations


def test_plan_of_a_local_model_checks_its_tensors_and_documents(write_recipe: Callable[..., Path]) -> None:
    plan = make_plan(load_recipe(write_recipe()))
    assert (plan.steps, plan.tokens, plan.gpus, plan.unchecked) == (12, 12 * 128, 2, [])
    assert set(plan.stages.values()) == {"to do"}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.row_length=64", "context of 32 tokens"),
        ("data.validation_fraction=0", "held-out documents"),
        ("evaluation.variants=[control]", "recalibration.control = true"),
        ("model.path=nowhere", "no such folder"),
        ("model.path=nobody/nothing", "known without a download"),
        ("model.path=../nowhere", "no such folder"),
        ("model.path=a--b/c", "no such folder"),
    ],
)
def test_plan_refuses_what_cannot_work(write_recipe: Callable[..., Path], override: str, part: str) -> None:
    with pytest.raises(RecipeError, match=part):
        make_plan(load_recipe(write_recipe(), (override,)))
