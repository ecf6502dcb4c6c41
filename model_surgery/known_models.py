"""Published shapes of the models that the recipes name, so that planning needs no network."""

from model_surgery.shape import ModelShape


def _llama(
    *,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: int,
    vocab: int,
    context: int,
    tied: bool,
    dtype: str = "bfloat16",
) -> ModelShape:
    return ModelShape(
        model_type="llama",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocab=vocab,
        context=context,
        tied=tied,
        norm_eps=1e-5,
        rope_theta=10000.0,
        dtype=dtype,
    )


KNOWN_MODELS = {
    "HuggingFaceTB/SmolLM-360M": _llama(
        layers=32, hidden=960, heads=15, kv_heads=5, head_dim=64, ffn=2560, vocab=49152, context=2048, tied=True
    ),
    "HuggingFaceTB/SmolLM-1.7B": _llama(
        layers=24, hidden=2048, heads=32, kv_heads=32, head_dim=64, ffn=8192, vocab=49152, context=2048, tied=True
    ),
    "meta-llama/Llama-2-7b-hf": _llama(
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=32,
        head_dim=128,
        ffn=11008,
        vocab=32000,
        context=4096,
        tied=False,
        dtype="float16",
    ),
    "Qwen/Qwen2-0.5B": ModelShape(
        model_type="qwen2",
        layers=24,
        hidden=896,
        heads=14,
        kv_heads=2,
        head_dim=64,
        ffn=4864,
        vocab=151936,
        context=131072,
        tied=True,
        norm_eps=1e-6,
        rope_theta=1e6,
        dtype="bfloat16",
        qkv_bias=True,
    ),
}
