import torch


class SwiGLU(torch.nn.Module):
    def forward(self, gate_and_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_and_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up


class Sequential(torch.nn.Sequential):
    """Named by Megatron-core, not used."""


class FusibleOperation(torch.nn.Module):
    """Named by Megatron-core, not used."""
