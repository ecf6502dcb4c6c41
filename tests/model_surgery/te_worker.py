"""A process of its own with layers of Transformer Engine (its stand-in): prints what they compute, as JSON."""

import json
import sys

from model_surgery.megatron.cpu import forgo_compiler_if_no_gpu, use_cpu_if_no_gpu
from tests.te_stand_in.activate import activate

SIZES = {"hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 128, "vocab": 96, "context": 64}
PLAIN = {"model_type": "llama", "layers": 4, "tied": False, "norm_eps": 1e-5, "rope_theta": 1e4}


def main() -> None:
    forgo_compiler_if_no_gpu()
    activate()
    use_cpu_if_no_gpu()
    import torch

    from model_surgery.megatron.model import start_parallel

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    start_parallel(1)
    json.dump({name: check() for name, check in CHECKS.items()}, sys.stdout)


def build(seed: int = 0, **options):
    import torch

    from model_surgery.megatron.model import build_model
    from model_surgery.shape import ModelShape

    shape = ModelShape(**PLAIN, **SIZES)
    model = build_model(shape, **({"position_embedding": "none", "layers": "transformer_engine"} | options))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.rand(parameter.shape, generator=draw) - 0.5
            parameter.copy_(values + 1 if "norm" in name else values * 0.4)
    return model


def fp8(**settings):
    from model_surgery.megatron.te.settings import FP8

    return FP8(**({"attention": True, "linear": False, "pad_head_dim": True, "amax_history": 4} | settings))


def rows(seed: int = 1):
    import torch

    return (torch.randint(96, (2, 32), generator=torch.Generator().manual_seed(number)) for number in (seed, seed + 1))


def losses_and_gradients(model, documents=None):
    from model_surgery.megatron.model import token_losses

    tokens, labels = rows()
    losses = token_losses(model, tokens, labels, documents)
    model.zero_grad()
    losses.mean().backward()
    return losses.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def names() -> dict:
    ours, torchs = build(), build(layers="torch")
    mark = "tensor_model_parallel"
    marked = [{n for n, p in model.named_parameters() if getattr(p, mark, False)} for model in (ours, torchs)]
    fused = [name for name, _ in ours.decoder.layers[0].named_parameters()]
    return {
        "parameters": list(dict(ours.named_parameters())) == list(dict(torchs.named_parameters())),
        "order of torch": list(dict(torchs.named_parameters())) == [n for n, _ in plain(torchs)],
        "state": ours.state_dict().keys() == torchs.state_dict().keys(),
        "marked": marked[0] == marked[1],
        "fused": "self_attention.linear_qkv.layer_norm_weight" in fused,
    }


def plain(model):
    """The parameters as torch's own class names them."""
    import torch

    return torch.nn.Module.named_parameters(model)


def states_go_both_ways() -> dict:
    import torch

    result = {}
    for ours, theirs in (("transformer_engine", "torch"), ("torch", "transformer_engine")):
        source, target = build(layers=ours), build(seed=9, layers=theirs)
        state = source.state_dict()
        target.load_state_dict(state)  # strictly
        now = dict(target.named_parameters())
        result[f"{ours} to {theirs}"] = all(torch.equal(now[name], value) for name, value in source.named_parameters())
        old = state | {"decoder.layers.0.self_attention.linear_qkv._extra_state": None}  # as in earlier checkpoints
        target.load_state_dict(old)
        try:
            target.load_state_dict({name: value for name, value in state.items() if "fc2" not in name})
            result[f"{theirs} takes a part"] = True
        except RuntimeError as error:
            result[f"{theirs} takes a part"] = "linear_fc2" not in str(error)
    return result


def equal_to_torch() -> dict:
    import torch

    result = {}
    documents = torch.arange(32).div(10, rounding_mode="floor").expand(2, -1)
    for name, options in {
        "none": {},
        "rope": {"position_embedding": "rope"},
        "recomputed": {"recompute": True},
        "fp8 off": {"fp8": fp8()},  # filled heads, in fp32
    }.items():
        for masked in (None, documents):
            losses, gradients = losses_and_gradients(build(**options), masked)
            expected, theirs = losses_and_gradients(build(**options | {"layers": "torch", "fp8": None}), masked)
            apart = max((gradients[key] - theirs[key]).abs().max().item() for key in theirs)
            result[f"{name}{' masked' if masked is not None else ''}"] = [(losses - expected).abs().max().item(), apart]
    return result


def regions() -> dict:
    """Which layers' attention was in FP8, and how often scales were brought up to date, by settings."""
    from transformer_engine.pytorch.attention import DotProductAttention
    from transformer_engine.pytorch.module import Linear
    from transformer_engine.pytorch.quantization import FP8GlobalStateManager

    result = {}
    for name, settings in {
        "attention": {},
        "attention of middle layers": {"first_layers_bf16": 1, "last_layers_bf16": 1},
        "linear": {"attention": False, "linear": True, "pad_head_dim": False},
        "both, not the first layer": {"linear": True, "first_layers_bf16": 1},
    }.items():
        FP8GlobalStateManager.reset()
        model = build(fp8=fp8(**settings))
        seen = {}
        for step in ("warm-up", "training", "evaluation"):
            model.fp8.active = step != "warm-up"
            model.train(step != "evaluation")
            DotProductAttention.computed.clear()
            FP8GlobalStateManager.updates = {True: 0, False: 0}
            losses_and_gradients(model)
            seen[step] = {
                "attention": [is_fp8 for is_fp8, _ in DotProductAttention.computed],
                "width": DotProductAttention.computed[0][1],
                "matrices": [layer.mlp.linear_fc1.fp8 for layer in model.decoder.layers],
                "updates": [FP8GlobalStateManager.updates[forward] for forward in (True, False)],
            }
        assert all(isinstance(layer.mlp.linear_fc1, Linear) for layer in model.decoder.layers)
        result[name] = seen
    return result


def numbers() -> dict:
    """Loss in FP8 against fp32; what comes after a token changes nothing before it."""
    import torch

    from model_surgery.megatron.model import token_losses
    from model_surgery.megatron.te.state import fp8_state

    model, plain = build(fp8=fp8(linear=True)), build()
    model.fp8.active = True
    expected = losses_and_gradients(plain)[0].mean()
    apart = [abs(losses_and_gradients(model)[0].mean() - expected).item() / expected.item() for _ in range(3)]
    of_attention = [value for name, value in fp8_state(model).items() if name.endswith("fused.scaling_bwd.scale")]
    tokens, labels = rows()
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 96
    with torch.no_grad():
        before, after = (token_losses(model, row, labels) for row in (tokens, changed))
    return {
        "relative difference": apart,
        "gradient scales moved": len(of_attention) == 4 and all(scales[0] != 1.0 for scales in of_attention),
        "before the change": torch.equal(before[:, :20], after[:, :20]),
        "from the change on": torch.equal(before[:, 20:], after[:, 20:]),
    }


def kept_scales() -> dict:
    """A model that gets another's weights and scales goes on as that one does; without the scales it does not."""
    import torch

    from model_surgery.megatron.te.state import fp8_state, load_fp8_state

    def trained(model, steps):
        model.fp8.active = True
        return [losses_and_gradients(model)[0] for _ in range(steps)][-1]

    first = build(fp8=fp8(linear=True))
    trained(first, 3)
    state = {name: value.clone() for name, value in fp8_state(first).items()}
    expected = trained(first, 1)
    fresh, dtypes = fp8_state(build(fp8=fp8())), {str(value.dtype) for value in state.values()}
    result = {"entries": len(state), "fresh": len(fresh), "dtypes": sorted(dtypes)}
    for name, scales in {"with": state, "without": {}, "other history": state}.items():
        second = build(fp8=fp8(linear=True, amax_history=9 if name == "other history" else 4))
        load_fp8_state(second, second.fp8, scales)
        result[name] = torch.equal(trained(second, 1), expected)
    return result


CHECKS = {
    check.__name__: check for check in (names, states_go_both_ways, equal_to_torch, regions, numbers, kept_scales)
}

if __name__ == "__main__":
    main()
