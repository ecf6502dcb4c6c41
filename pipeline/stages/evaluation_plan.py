"""What the evaluation of a recipe takes, and whether it fits the machine that it is planned for."""

from dataclasses import asdict, dataclass
from typing import Any

from eval.memory import EvaluationMemory, Sizes, device_bytes, evaluation_memory, ways_out
from model_surgery.shape import ModelShape
from pipeline.recipe.recipe import Recipe

ASSUMED_MEMORY = 80_000_000_000
"""Bytes of a GPU for which is planned on a machine without one."""


@dataclass(frozen=True)
class EvaluationPlan:
    """device: where it runs, in words. available: bytes there. ways_out: what would make it take less."""

    memory: EvaluationMemory
    device: str
    available: int
    ways_out: str

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.available

    @property
    def warning(self) -> str:
        """What stands in the way; empty where it fits."""
        if self.fits:
            return ""
        return (
            f"the evaluation would be refused, as it takes more than {self.device}: run it on a larger machine, or "
            f"take {self.ways_out}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For programs, in bytes."""
        return {
            **asdict(self.memory),
            "total": self.memory.total,
            "available": self.available,
            "fits": self.fits,
        }

    def as_text(self) -> str:
        """For people, in one line."""
        return f"{self.memory} (GiB, estimated); {'fits into' if self.fits else 'more than'} {self.device}"


def plan_evaluation(recipe: Recipe, shape: ModelShape) -> EvaluationPlan:
    """Of a model of this `shape`; as for training, a GPU is assumed where none is here."""
    sizes = Sizes(**shape.model_dump(include=set(Sizes.__annotations__)))
    memory = evaluation_memory(sizes, recipe.evaluation, shape.context)
    device, available = _device(recipe)
    return EvaluationPlan(memory, device, available, ways_out(memory, recipe.evaluation))


def _device(recipe: Recipe) -> tuple[str, int]:
    import torch

    if recipe.evaluation.device == "cpu":
        size = device_bytes(torch.device("cpu"))
        return f"this machine's {size / 1e9:.0f} GB", size
    if torch.cuda.device_count():
        size = device_bytes(torch.device("cuda"))
        return f"the GPU of {size / 1e9:.0f} GB here", size
    return f"a GPU of {ASSUMED_MEMORY / 1e9:.0f} GB, assumed since none is here", ASSUMED_MEMORY
