"""What the model keeps for the backward pass, in a process group of one; more ranks are trained in tests/pipeline."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_surgery.layout import Layout, read_rank
from model_surgery.megatron.model import build_model, load_slices, token_losses
from model_surgery.megatron.swiglu import SwiGLU

pytestmark = pytest.mark.usefixtures("megatron_of_one")


def gradients(
    folder: Path, dtype: torch.dtype, documents: Tensor | None, **options: bool
) -> tuple[dict[str, Tensor], int]:
    """The gradient of every parameter, and the bytes that autograd kept from forward to backward."""
    layout = Layout.load(folder)
    model = build_model(layout.shape, position_embedding="rope", dtype=dtype, **options)
    load_slices(model, read_rank(folder, layout, 0))
    tokens, labels = (torch.randint(96, (2, 32), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = token_losses(model, tokens, labels, documents).mean()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_recomputed_layers_give_the_same_gradients_from_less(
    dtype: torch.dtype, masked: bool, layouts: dict[int, Path]
) -> None:
    documents = torch.arange(32).expand(2, -1) // 10 if masked else None
    expected, kept = gradients(layouts[1], dtype, documents)
    got, kept_again = gradients(layouts[1], dtype, documents, recompute=True)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert kept_again < kept / 2


def test_rows_of_one_rank_are_whole_under_sequence_parallelism(layouts: dict[int, Path]) -> None:
    plain, _ = gradients(layouts[1], torch.float32, None)
    got, _ = gradients(layouts[1], torch.float32, None, sequence_parallel=True)
    assert all(torch.equal(got[name], plain[name]) for name in plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_is_the_expression_but_for_what_it_keeps(dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, 16, dtype=dtype, requires_grad=True)
    grad = torch.randn(5, 3, 8, dtype=dtype)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        got = SwiGLU(config=None)(x)
    gate, up = x.chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up
    assert torch.equal(got, expected)
    assert torch.equal(torch.autograd.grad(got, x, grad)[0], torch.autograd.grad(expected, x, grad)[0])
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]


def test_gradients_of_swiglu_are_those_of_its_values() -> None:
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SwiGLU(config=None), x)
