"""The probes of several models on the same sequences, kept as JSON and CSV."""

import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from eval.errors import EvaluationError
from eval.probes.theory import (
    BIASES,
    EPSILONS,
    Bias,
    LayerProbe,
    constant,
    embedded,
    load_model,
    perturbed,
    probe,
    slope,
)
from foundation.files import write_text

Sequence = Literal["constant", "text"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Subject(_Record):
    """A model to probe."""

    name: str = Field(description="How it is called in tables and plots.")
    folder: Path = Field(description="Hugging Face folder.")
    rope: bool = Field(description="Whether it keeps the positions that its config says.")
    seed: int | None = Field(description="Seed of weights at initialisation; none for the folder's own.")


class Layer(_Record):
    """`LayerProbe` of a subject on a sequence."""

    subject: str
    sequence: Sequence
    epsilon: float = Field(description="Perturbation of the embeddings, as a share of their norm.")
    layer: int
    prefix_spread: float
    bias: dict[Bias, float]
    query_grad: dict[Bias, float]
    key_grad: dict[Bias, float]


class Slope(_Record):
    """Exponent p of a measure ~ epsilon^p on a perturbed constant sequence."""

    subject: str
    layer: int
    measure: str = Field(description="prefix_spread, or bias, query_grad, key_grad with the kind of bias.")
    value: float


class ProbeResults(_Record):
    """All that was measured."""

    schema_version: Literal[1] = 1
    length: int = Field(description="Tokens of the sequences.")
    seed: int = Field(description="Seed of the repeated token and of the perturbations.")
    subjects: tuple[Subject, ...]
    layers: tuple[Layer, ...]
    slopes: tuple[Slope, ...]

    def save(self, folder: Path) -> None:
        """Writes probes.csv (one line per layer and sequence) and probes.json."""
        write_text(folder / "probes.csv", self.table())
        write_text(folder / "probes.json", self.model_dump_json(indent=1) + "\n")

    def table(self) -> str:
        """The layers as CSV."""
        text = io.StringIO()
        names = ["subject", "sequence", "epsilon", "layer", *measures()]
        writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        for layer in self.layers:
            facts = layer.model_dump(include={"subject", "sequence", "epsilon", "layer"})
            writer.writerow(facts | {name: measure(layer, name) for name in measures()})
        return text.getvalue()


def measures() -> list[str]:
    """Names of what is measured in every layer."""
    return ["prefix_spread", *(f"{name}_{kind}" for name in ("bias", "query_grad", "key_grad") for kind in BIASES)]


def measure(layer: Layer | LayerProbe, name: str) -> float:
    """A number by its name in `measures`."""
    if name == "prefix_spread":
        return layer.prefix_spread
    part, kind = name.rsplit("_", 1)
    return getattr(layer, part)[kind]


def run(subjects: list[Subject], text: np.ndarray | None, *, length: int, seed: int) -> ProbeResults:
    """Probes every subject on a constant sequence, on that sequence perturbed by each of EPSILONS, and on text.

    text: [at least length] token ids; None to leave that out. All subjects are given the same tokens.

    Raises: EvaluationError for a length below 2, text that is too short, or a folder that holds no fit model.
    """
    from tqdm import tqdm

    if length < 2:
        raise EvaluationError(f"length = {length}: a sequence of at least 2 tokens has positions; give more")
    if text is not None and len(text) < length:
        raise EvaluationError(f"length = {length}: there are {len(text)} held-out tokens; give a shorter length")
    layers: list[Layer] = []
    for subject in tqdm(subjects, desc="probe", unit="model", disable=None):
        model = load_model(subject.folder, rope=subject.rope, seed=subject.seed)
        token = int(np.random.default_rng(seed).integers(model.config.vocab_size))
        same = constant(model, token, length)
        cases: list[tuple[Sequence, float, torch.Tensor]] = [("constant", 0.0, same)]
        cases += [("constant", epsilon, perturbed(same, epsilon, seed)) for epsilon in EPSILONS]
        if text is not None:
            cases.append(("text", 0.0, embedded(model, text[:length].tolist())))
        for sequence, epsilon, embeddings in cases:
            layers += [layer_of(subject, sequence, epsilon, probed) for probed in probe(model, embeddings)]
        del model
    return ProbeResults(
        length=length, seed=seed, subjects=tuple(subjects), layers=tuple(layers), slopes=tuple(slopes(layers))
    )


def layer_of(subject: Subject, sequence: Sequence, epsilon: float, probed: LayerProbe) -> Layer:
    """The record of one layer."""
    return Layer(
        subject=subject.name,
        sequence=sequence,
        epsilon=epsilon,
        layer=probed.layer,
        prefix_spread=probed.prefix_spread,
        bias=probed.bias,
        query_grad=probed.query_grad,
        key_grad=probed.key_grad,
    )


def slopes(layers: list[Layer]) -> list[Slope]:
    """Of every subject, layer and measure, over the perturbed sequences."""
    grouped: dict[tuple[str, int], list[Layer]] = {}
    for layer in layers:
        if layer.epsilon > 0:
            grouped.setdefault((layer.subject, layer.layer), []).append(layer)
    return [
        Slope(
            subject=subject,
            layer=number,
            measure=name,
            value=slope([layer.epsilon for layer in group], [measure(layer, name) for layer in group]),
        )
        for (subject, number), group in grouped.items()
        for name in measures()
    ]
