"""The checks; each returns facts, and whether they are as they should be."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.models import KINDS, build, rows, shape
from model_surgery.megatron.model import token_losses, weighted_loss
from model_surgery.shape import ModelShape

Facts = dict[str, Any]


def relative(result: Tensor, expected: Tensor) -> float:
    """||found - wanted|| / ||wanted||."""
    return ((result.float() - expected.float()).norm() / expected.float().norm()).item()


def training_loss(model: torch.nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """The mean over all tokens, as a training takes it."""
    return weighted_loss(model, tokens, labels, torch.full(labels.shape, 1 / labels.numel(), device=labels.device))


def pass_through(
    model: torch.nn.Module, tokens: Tensor, labels: Tensor
) -> tuple[list[Tensor], dict[str, Tensor], float]:
    """What comes out of every layer, the gradient of every parameter, the loss. Scales of FP8 first see two passes."""
    outputs: list[Tensor] = []
    for _ in range(2 if model.fp8 else 0):
        training_loss(model, tokens, labels).backward()
    model.zero_grad()
    hooks = [
        layer.register_forward_hook(lambda _, __, out: outputs.append(out[0].detach()))
        for layer in model.decoder.layers
    ]
    loss = training_loss(model, tokens, labels)
    loss.backward()
    for hook in hooks:
        hook.remove()
    return outputs, {name: parameter.grad for name, parameter in model.named_parameters()}, loss.item()


def against_fp32(of: ModelShape, length: int, device: torch.device, kinds: list[str]) -> Facts:
    """Relative errors of layers' outputs and of gradients (the median and the largest over tensors), by kind."""
    tokens, labels = rows(of, length, device)
    expected, gradients, loss = pass_through(build(of, "fp32", device), tokens, labels)
    result: Facts = {"loss": {"fp32": loss}, "layers": {}, "gradients": {}}
    for kind in kinds:
        outputs, theirs, result["loss"][kind] = pass_through(build(of, kind, device), tokens, labels)
        result["layers"][kind] = [relative(*pair) for pair in zip(outputs, expected, strict=True)]
        errors = sorted(relative(theirs[name], gradients[name]) for name in gradients)
        result["gradients"][kind] = {"median": errors[len(errors) // 2], "largest": errors[-1]}
    result["ok"] = all(within(kind, result, loss) for kind in kinds)
    return result


def within(kind: str, result: Facts, loss: float) -> bool:
    """Whether errors are those of the number format: several times as large in FP8, and of single gradients."""
    limit = 0.15 if "fp8" in kind else 0.02
    gradients = result["gradients"][kind]
    return (
        max(result["layers"][kind]) < limit
        and gradients["median"] < 3 * limit
        and gradients["largest"] < 10 * limit
        and abs(result["loss"][kind] / loss - 1) < limit / 2
    )


def causality(of: ModelShape, length: int, device: torch.device, kinds: list[str]) -> Facts:
    """In training mode with scales that no longer move, what comes after a token changes nothing before it."""
    result: Facts = {}
    for kind in kinds:
        model = build(of, kind, device)
        tokens, labels = rows(of, length, device)
        pass_through(model, tokens, labels)
        changed = tokens.clone()
        changed[:, length // 2] = (changed[:, length // 2] + 1) % of.vocab
        with torch.no_grad() if model.fp8 else nullcontext():  # so no scale is updated; compiled layers want gradients
            before, after = token_losses(model, tokens, labels), token_losses(model, changed, labels)
        same = torch.equal(before[:, : length // 2], after[:, : length // 2])
        result[kind] = same and not torch.equal(before, after)
    return result | {"ok": all(result.values())}


def kept_scales(of: ModelShape, length: int, device: torch.device, kinds: list[str]) -> Facts:
    """A model with another's weights and scales computes its next loss."""
    from model_surgery.megatron.te.state import fp8_state, load_fp8_state

    tokens, labels = rows(of, length, device)
    result: Facts = {}
    for kind in kinds:
        first, second = build(of, kind, device), build(of, kind, device)
        pass_through(first, tokens, labels)
        state = {name: value.cpu() for name, value in fp8_state(first).items()}
        load_fp8_state(second, second.fp8, state)
        losses = [token_losses(model, tokens, labels).detach() for model in (first, second)]
        result[kind] = {"entries": len(state), "equal": torch.equal(*losses)}
    return result | {"ok": all(facts["equal"] and facts["entries"] for facts in result.values())}


def curves(of: ModelShape, length: int, device: torch.device, kinds: list[str], steps: int) -> Facts:
    """Mean loss of the last quarter of `steps` updates on rows with something to learn, against the first kind's."""
    draw = torch.Generator().manual_seed(3)
    table = torch.randint(of.vocab, (64, 8), generator=draw)  # what may follow a token: eight words
    result: Facts = {}
    for kind in kinds:
        model = build(of, kind, device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0)
        draw.manual_seed(4)
        losses = []
        for _ in range(steps):
            chosen = torch.randint(8, (4, length + 1), generator=draw)
            words = torch.zeros(4, length + 1, dtype=torch.long)
            for place in range(1, length + 1):
                words[:, place] = table[words[:, place - 1] % 64, chosen[:, place]]
            words = words.to(device)
            loss = training_loss(model, words[:, :-1].contiguous(), words[:, 1:].contiguous())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        result[kind] = {"losses": losses, "last": sum(losses[-(steps // 4) :]) / (steps // 4)}
    first = result[kinds[0]]["last"]
    apart = {kind: abs(facts["last"] / first - 1) for kind, facts in result.items()}
    return {"curves": result, "apart": apart, "ok": max(apart.values()) < 0.005}


def long_answers(of: ModelShape, tokens: int, device: torch.device) -> Facts:
    """Seconds and memory of one answer of 32 tokens to a prompt of so many, by transformers' SmolLM3 as evaluated."""
    from transformers import AutoModelForCausalLM, SmolLM3Config

    from eval.answers.generation import generate

    config = SmolLM3Config(
        vocab_size=of.vocab, hidden_size=of.hidden, intermediate_size=of.ffn, num_hidden_layers=of.layers,
        num_attention_heads=of.heads, num_key_value_heads=of.kv_heads, head_dim=of.head_dim,
        no_rope_layers=[0] * of.layers, max_position_embeddings=tokens + 32, tie_word_embeddings=of.tied,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with device:  # drawn there: billions of numbers
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    prompts = [
        torch.randint(3, of.vocab, (tokens,), generator=torch.Generator().manual_seed(n)).tolist() for n in (0, 1)
    ]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began, answered = time.perf_counter(), 0
    for batch in generate(model, prompts, new_tokens=32, batch_tokens=8192, stop=lambda *_: False):
        answered += len(batch)
    seconds = (time.perf_counter() - began) / len(prompts)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {"tokens": tokens, "seconds_per_sample": seconds, "gib": memory / 2**30, "ok": answered == len(prompts)}


def names(of: ModelShape, device: torch.device) -> Facts:
    """Layers of Transformer Engine have the names, order and marks of torch's."""
    models = [build(of, kind, device) for kind in ("torch-bf16", "te-bf16")]
    said = [
        [(name, tuple(p.shape), getattr(p, "tensor_model_parallel", False)) for name, p in model.named_parameters()]
        for model in models
    ]
    return {
        "parameters": len(said[0]),
        "ok": said[0] == said[1] and models[0].state_dict().keys() == models[1].state_dict().keys(),
    }


def listed(size: str, te: bool, device: torch.device) -> dict[str, Callable[[], Facts]]:
    """The checks by name for a size: `tiny` for a CPU, `all` for a GPU. `te`: whether Transformer Engine is there."""
    kinds = [kind for kind in KINDS if te or not kind.startswith("te-")]
    of_fp8 = [kind for kind in kinds if "fp8" in kind]
    blocks = {"tiny": ("tiny", 128)} if size == "tiny" else {"7b": ("7b", 4096), "360m": ("360m", 2048)}
    checks: dict[str, Callable[[], Facts]] = {}
    for label, (block, length) in blocks.items():
        of, normed = shape(block, 4), shape(block, 2, q_norm="full", k_norm="full")
        checks[f"{label}: against fp32"] = lambda of=of, n=length: against_fp32(of, n, device, kinds)
        checks[f"{label}: QK-norm against fp32"] = lambda of=normed, n=length: against_fp32(of, n, device, kinds)
        checks[f"{label}: causality"] = lambda of=of, n=length: causality(of, n, device, kinds)
        if te:
            checks[f"{label}: names"] = lambda of=of: names(of, device)
            checks[f"{label}: kept scales"] = lambda of=of, n=length: kept_scales(of, n, device, of_fp8)
    small = (
        shape("tiny", 4) if size == "tiny" else shape("7b", 4, hidden=1024, heads=8, kv_heads=8, ffn=2816, vocab=4096)
    )
    steps, length = (8, 64) if size == "tiny" else (200, 512)
    checks["loss curves"] = lambda: curves(small, length, device, ["te-bf16", *of_fp8] if te else kinds, steps)
    for label, (block, context) in blocks.items():
        whole = {"7b": 32, "360m": 32, "tiny": 2}[block]
        long = 16 * (16 if size == "tiny" else context)
        checks[f"{label}: answers at 16x"] = lambda of=block, n=long, layers=whole: long_answers(
            shape(of, layers), n, device
        )
    return checks
