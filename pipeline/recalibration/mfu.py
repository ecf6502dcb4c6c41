"""Model FLOPs utilisation: the arithmetic that the model needs, as a share of what the devices could do.

    MFU = tokens * (6 * weights + 6 * layers * heads * head_dim * length) / (seconds * devices * peak)

Chowdhery et al. 2022 (arXiv:2204.02311, appendix B). What is computed beyond the model's need does not count: layers
recomputed in the backward pass, heads of zeros, pairs of tokens that a kernel computes and then masks.
"""

from model_surgery.shape import ModelShape

_PEAK_TFLOPS = {
    "GB200": 2500,
    "B200": 2250,
    "GH200": 989,
    "H200 NVL": 835,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H800": 989,
    "H20": 148,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
}
"""Dense bf16 on tensor cores by NVIDIA's data sheets (half of what these give with sparsity); longer names first."""


def peak_flops(device_name: str) -> float | None:
    """Peak of a GPU in bf16, FLOP/s, by the name that CUDA gives it; None for one that is not known, and for a CPU."""
    words = device_name.replace("-", " ").split()
    for name, tflops in _PEAK_TFLOPS.items():
        if set(name.split()) <= set(words):
            return tflops * 1e12
    return None


def training_flops(shape: ModelShape, *, tokens: int, length: int) -> float:
    """Floating-point operations of forward and backward over `tokens` in rows of `length`, of the model unpadded.

    6 per token and weight that multiplies: all but the input embedding, which an untied model has beside its head.
    Attention: 12 * layers * heads * head_dim * length per token for two products over all pairs, forward and backward,
    halved by the causal mask; grouped KV heads save none of it. Masked documents are counted as if they were not.
    """
    weights = shape.parameters - (0 if shape.tied else shape.vocab * shape.hidden)
    attention = 6 * shape.layers * shape.heads * shape.head_dim * length
    return float(tokens) * (6 * weights + attention)


def mfu(shape: ModelShape, tokens: int, length: int, seconds: float, devices: int, peak: float) -> float:
    """Model FLOPs utilisation, a share of 1: `tokens` of training in `seconds` on `devices` of `peak` FLOP/s each."""
    return training_flops(shape, tokens=tokens, length=length) / (seconds * devices * peak)
