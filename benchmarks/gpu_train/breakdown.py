"""Where the time of a step goes, by the names of the kernels that the profiler saw."""

import re
from collections import Counter
from collections.abc import Iterable

_KINDS = (
    ("compiled", r"^triton_|cpp_fused"),
    ("attention", r"flash|fmha|sdpa|attention|cudnn.*(attn|mha)|fwd_splitkv"),
    ("communication", r"nccl|all_?reduce|all_?gather|reduce_?scatter|gloo"),
    ("optimizer", r"adam|multi_tensor|l2norm|foreach"),
    ("matrices", r"gemm|cutlass|cublas|nvjet|sm\d+_xmma|wgmma|gemv|mm_kernel|aten::(mm|addmm|bmm|linear)"),
    ("FP8 casts", r"cast_|quantize|fp8|transpose.*cast|amax"),
    ("copies", r"memcpy|memset|copy_kernel|CatArray|aten::copy_"),
)
"""In this order: a compiled kernel's name speaks of all that it fuses, an attention kernel's may of gemm."""


def kind_of(kernel: str) -> str:
    """Which part of a step a kernel belongs to; `other`: norms, SwiGLU, softmax of the loss, embeddings."""
    return next((kind for kind, names in _KINDS if re.search(names, kernel, re.IGNORECASE)), "other")


def breakdown(kernels: Iterable[tuple[str, float]], wall_seconds: float) -> dict[str, float]:
    """Seconds by kind of (name, seconds) kernels, and `idle`: what of the wall time no kernel ran in."""
    result: Counter[str] = Counter()
    for name, seconds in kernels:
        result[kind_of(name)] += seconds
    return {**dict(result.most_common()), "idle": max(0.0, wall_seconds - sum(result.values()))}
