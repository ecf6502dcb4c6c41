"""What is measured: models at their lengths, ways of training them, and how much of a model fits."""

from dataclasses import asdict, dataclass
from typing import Any

from model_surgery.known_models import KNOWN_MODELS
from model_surgery.shape import ModelShape
from pipeline.recalibration.memory import training_memory
from pipeline.recalibration.ranks import USABLE
from pipeline.recipe.recalibration import ResolvedTraining

_TINY = ModelShape(
    model_type="llama", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=160, vocab=512, context=128,
    tied=True, norm_eps=1e-5, rope_theta=1e4,
)  # fmt: skip
MODELS: dict[str, tuple[ModelShape, int]] = {
    "360m": (KNOWN_MODELS["HuggingFaceTB/SmolLM-360M"], 2048),
    "1.7b": (KNOWN_MODELS["HuggingFaceTB/SmolLM-1.7B"], 2048),
    "7b": (KNOWN_MODELS["meta-llama/Llama-2-7b-hf"], 4096),
    "tiny": (_TINY, 128),
}
"""Shape and row length; tiny is for seeing that the benchmark runs, on a CPU too."""

WAYS: dict[str, dict[str, Any]] = {
    "published": {},
    "torch-bf16": {"precision": "bf16", "layers": "torch"},
    "compiled-bf16": {"precision": "bf16", "layers": "compiled"},
    "te-bf16": {"precision": "bf16", "layers": "transformer_engine"},
    "te-fp8-attention": {"precision": "fp8", "fp8": {"attention": "on"}},
    "te-fp8-attention-padded": {"precision": "fp8", "fp8": {"attention": "on", "pad_head_dim": True}},
    "te-fp8-linear": {"precision": "fp8", "fp8": {"attention": "off", "linear": "on"}},
    "te-fp8-both": {"precision": "fp8", "fp8": {"attention": "on", "linear": "on"}},
}
"""Settings of `recalibration`; published: transformers' Llama and Trainer."""


@dataclass(frozen=True)
class Case:
    """One training on one GPU, of random weights on random tokens."""

    model: str
    way: str
    shape: dict[str, Any]
    length: int
    """Tokens of a row."""
    micro_batch: int
    accumulate: int
    """Micro batches of an update."""
    steps: int
    warm_up: int
    """First steps that are not timed."""

    @property
    def tokens_per_step(self) -> int:
        return self.length * self.micro_batch * self.accumulate

    def config(self) -> ResolvedTraining:
        return config_of(self.way, self.micro_batch, self.accumulate, self.steps * self.tokens_per_step)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def config_of(way: str, micro_batch: int, accumulate: int, tokens: int) -> ResolvedTraining:
    """ZeRO 1 on one rank, as a run on many would be but for its communication."""
    sizes = {"tokens": tokens, "batch": micro_batch * accumulate, "micro_batch": micro_batch, "data_parallel": 1}
    return ResolvedTraining.model_validate({**sizes, "lr": 1e-4, **WAYS[way]})


def fitting(model: str, micro_batch: int, accumulate: int, memory_bytes: int) -> ModelShape:
    """The model, with as many of its layers as its training is estimated to fit with into a device's memory.

    The states of a 7B model's optimizer alone take 120 GB, which several GPUs share in a real run.
    """
    shape, length = MODELS[model]
    config = config_of("torch-bf16", micro_batch, accumulate, micro_batch * accumulate * length)
    for layers in range(shape.layers, 0, -1):
        cut = shape.model_copy(update={"layers": layers})
        if training_memory(cut, config, tensor_parallel=1, length=length).total <= USABLE * memory_bytes:
            return cut
    raise ValueError(
        f"not even one layer of {model} fits into {memory_bytes / 1e9:.0f} GB; use a smaller --micro-batch"
    )
