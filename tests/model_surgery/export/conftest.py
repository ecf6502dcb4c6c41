"""Random models of every kind of attention, their layouts, and their logits by another implementation."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.layout import LAYOUT_FILE, Layout
from model_surgery.shape import ModelShape, read_shape
from model_surgery.transformers_registration import register_drope
from model_surgery.verification.reference import logits_of, whole_model

TOKENS = torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(11))


@dataclass(frozen=True)
class Trained:
    """A layout as training leaves it, with what it was made from."""

    folder: Path
    source: Path
    shape: ModelShape
    norms: dict[str, Tensor] | None

    def logits(self, tokens: Tensor = TOKENS, *, rope: bool = False, beta: float = 1.0) -> Tensor:
        """Logits by the family's own class, norms hooked in, attention logits multiplied by beta."""
        model = whole_model(self.source, self.shape, identity_rotation=not rope, norms=self.norms)
        for layer in model.model.layers:
            layer.self_attn.scaling *= beta
        return logits_of(model, tokens)


def random_norms(shape: ModelShape) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        f"model.layers.{layer}.self_attn.{part}_norm.weight": 0.5 + torch.rand(width, generator=generator)
        for layer in range(shape.layers)
        for part in "qk"
        if (width := shape.norm_width(part))
    }


def write_published(folder: Path, base: Path, attention_type: str) -> Path:
    """The weights of `base` as the published models have them: another model type, and both norms where there is one.

    Written by the classes of `hub_code`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    register_drope()
    raw = json.loads((base / "config.json").read_text())
    family = raw.pop("model_type")
    config = AutoConfig.for_model(f"{family}_drope", **raw, attention_type=attention_type)
    model = AutoModelForCausalLM.from_config(config)
    missing, unexpected = model.load_state_dict(load_file(base / "model.safetensors"), strict=False)
    assert not unexpected
    model.tie_weights()
    with torch.no_grad():
        for name, weight in random_norms(both_norms(read_shape(base))).items():
            if name in missing:
                model.get_parameter(name).copy_(weight)
    model.save_pretrained(folder)
    if attention_type in ("q_norm_nope", "k_norm_nope"):
        saved = load_file(folder / "model.safetensors")
        unused = random_norms(both_norms(read_shape(base)))
        save_file(unused | saved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def both_norms(shape: ModelShape) -> ModelShape:
    return shape.model_copy(update={"q_norm": "full", "k_norm": "full"})


@pytest.fixture(scope="session")
def published(
    tiny_model: Path, qwen2_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """The folder of a random published DroPE model by family and attention type; not to be written to."""
    made: dict[tuple[str, str], Path] = {}

    def make(family: str, attention_type: str) -> Path:
        key = family, attention_type
        if key not in made:
            base = {"llama": tiny_model, "qwen2": qwen2_model}[family]
            made[key] = write_published(tmp_path_factory.mktemp("published"), base, attention_type)
        return made[key]

    return make


@pytest.fixture(scope="session")
def trained(
    tiny_model: Path,
    qwen2_model: Path,
    published: Callable[[str, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Trained]:
    """A layout by family and norms: none, full, per_head (put in at surgery, weights random), q_only, k_only."""

    def make(family: str, norms: str, tensor_parallel: int = 2, position_embedding: str = "none") -> Trained:
        folder = tmp_path_factory.mktemp("trained")
        if norms in ("q_only", "k_only"):
            source, settings = published(family, f"{norms[0]}_norm_nope"), {}
        else:
            source, settings = {"llama": tiny_model, "qwen2": qwen2_model}[family], {"qk_norm": norms}
        config = SurgeryConfig(tensor_parallel=tensor_parallel, **settings)
        shape = read_shape(source)
        if norms in ("full", "per_head"):
            shape = shape.model_copy(update={"q_norm": norms, "k_norm": norms})
        inserted = random_norms(shape) if norms in ("full", "per_head") else None
        layout = convert(config, source=source, out_dir=folder, norms=inserted)
        changed = layout.model_copy(update={"position_embedding": position_embedding})
        (folder / LAYOUT_FILE).write_text(changed.model_dump_json())
        return Trained(folder, source, Layout.load(folder).shape, inserted)

    return make
