"""A process of its own, in which torch's compiler has not been put aside: prints what compiled layers do, as JSON."""

import json
import sys

import torch

from model_surgery.megatron.cpu import use_cpu_if_no_gpu
from tests.model_surgery.te_worker import build, rows


def main() -> None:
    use_cpu_if_no_gpu()
    torch.set_num_threads(1)
    from model_surgery.megatron.compiled import reason_against
    from model_surgery.megatron.model import start_parallel

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    start_parallel(1)
    result = {"reason against": reason_against(), "to torch's": {}}
    documents = torch.arange(32).div(10, rounding_mode="floor").expand(2, -1)
    for name, dtype, position, masked in (
        ("fp32", torch.float32, "none", None),
        ("bf16, rope, masked", torch.bfloat16, "rope", documents),
    ):
        ours, torchs = (build(layers=layers, dtype=dtype, position_embedding=position) for layers in LAYERS)
        exact = build(layers="torch", position_embedding=position)
        passes = [loss_and_gradients(model, masked) for model in (ours, torchs, exact)]
        result["to torch's"][name] = [distances(one, passes[2]) for one in passes[:2]]
        result["to torch's"][name].append([kept for _, _, kept in passes[:2]])
        if name == "fp32":
            result["graphs"], result["breaks"] = graphs(), len(torch._dynamo.utils.counters["graph_break"])
            result["evaluation"] = evaluation(ours, torchs)
            result["graphs later"] = graphs()
    json.dump(result, sys.stdout)


LAYERS = ("compiled", "torch")


def graphs() -> int:
    """How many were compiled so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def loss_and_gradients(model, documents):
    """And the bytes that autograd kept from forward to backward."""
    from model_surgery.megatron.model import weighted_loss

    tokens, labels = (words[: 1 if documents is None else 2] for words in rows())
    weights = torch.arange(tokens.numel()).view_as(tokens) / 2048
    weighted_loss(model, tokens, labels, weights, documents).backward()  # compiles
    model.zero_grad()
    kept = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = weighted_loss(model, tokens, labels, weights, documents)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}, sum(kept.values())


def distances(one, expected) -> list[float]:
    """Relative distances of the loss, and of the gradient that is furthest off."""
    apart = [(one[1][name].float() - grad).norm() / grad.norm() for name, grad in expected[1].items()]
    return [abs(one[0] / expected[0] - 1), max(apart).item()]


def evaluation(ours, torchs) -> dict[str, bool]:
    """Whether losses without gradients, of rows of another length too, are torch's to the last bit; and with a hook."""
    from model_surgery.megatron.model import token_losses

    tokens, labels = (words[:1] for words in rows())
    result = {}
    with torch.no_grad():
        for length in (32, 17):
            some = (tokens[:, :length], labels[:, :length])
            result[str(length)] = torch.equal(token_losses(ours, *some), token_losses(torchs, *some))
    seen = []
    for model in (ours, torchs):
        core = model.decoder.layers[1].self_attention.core_attention
        hook = core.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
        result["hook"] = token_losses(model, tokens, labels).requires_grad and len(seen) > 0
        hook.remove()
    return result


if __name__ == "__main__":
    main()
