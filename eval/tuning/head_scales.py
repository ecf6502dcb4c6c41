"""A softmax scale for every query head of every layer, trained on held-out text with all weights frozen.

HeadScale of Wang et al. 2024 (arXiv:2404.12224), which found such scales to carry models without positions beyond their
training length. Here a scale is the exponential of what is trained, so that it stays above zero and a step of Adam
changes it by a share of itself, and it begins with the tuned scale of all heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from eval.errors import EvaluationError
from eval.models import head_dim_of
from eval.tasks.forward import LOGIT_ELEMENTS
from eval.tuning.judging import Judge, JudgedBy
from eval.tuning.softmax_scale import Tuning
from foundation.files import write_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LEARNING_RATE = 0.1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Record):
    """Loss with the scale of all heads and with the trained ones."""

    on: JudgedBy = Field(description="text: held out, and used for neither scale; needles: what judged the first one.")
    rows: int
    before: float = Field(description="Nats per token.")
    after: float = Field(description="Nats per token.")


class TrainedHeads(_Record):
    """The scales of one model at one length."""

    schema_version: Literal[1] = 1
    model_digest: str
    factor: float = Field(description="s: length over training length.")
    length: int = Field(description="Tokens of a row.")
    rows: int = Field(description="Rows that they were trained on.")
    steps: int
    learning_rate: float
    start: float = Field(description="The scale of all heads, with which they began.")
    scales: tuple[tuple[float, ...], ...] = Field(description="[layers][query heads] factors of attention logits.")
    losses: tuple[float, ...] = Field(description="Loss of each step's rows before it, nats per token.")
    checks: tuple[Check, ...]

    def save(self, folder: Path) -> None:
        """Writes heads.json."""
        write_text(folder / "heads.json", self.model_dump_json(indent=1) + "\n")


def scaled_parts(model: "PreTrainedModel") -> list["torch.nn.Module"]:
    """Of every layer what gives the final queries, all heads in one vector: the norm where there is one, else q_proj.

    Raises: EvaluationError for a norm over each head, whose weight all heads share.
    """
    parts = []
    width = model.config.num_attention_heads * head_dim_of(model.config)
    for layer in model.model.layers:
        norm = getattr(layer.self_attn, "q_norm", None)
        if norm is not None and norm.weight.numel() != width:
            raise EvaluationError(
                "--per-head: queries have a norm over each head, whose weight all heads of a layer share, so that none "
                "can have a scale of its own; leave --per-head out"
            )
        parts.append(layer.self_attn.q_proj if norm is None else norm)
    return parts


@contextmanager
def scaled_heads(model: "PreTrainedModel", scales: "torch.Tensor") -> Iterator["PreTrainedModel"]:
    """The model with every head's queries multiplied by its entry of `scales` [layers, query heads] while this lasts.

    Gradients reach `scales`. The queries are those after bias and norm. Raises: EvaluationError as `scaled_parts`.
    """
    width = head_dim_of(model.config)

    def multiply(layer: int, queries: "torch.Tensor") -> "torch.Tensor":
        return queries * scales[layer].to(queries).repeat_interleave(width)

    hooks = [
        part.register_forward_hook(lambda module, args, output, layer=layer: multiply(layer, output))
        for layer, part in enumerate(scaled_parts(model))
    ]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def train_heads(
    tuning: Tuning, model: "PreTrainedModel", *, factor: float, start: float, steps: int, learning_rate: float
) -> TrainedHeads:
    """Scales for rows of factor * C tokens by Adam from `start` in every head, on batches of the text to tune on.

    Checked on the text that follows it, where there is a row of that, and on needle answers where those judge.

    Raises: EvaluationError as `scaled_parts`.
    """
    import torch
    from tqdm import tqdm

    length = round(factor * tuning.inputs.context)
    text = tuning.text(length)
    shape = model.config.num_hidden_layers, model.config.num_attention_heads
    before = torch.full(shape, start, device=model.device)
    trained = before.log().requires_grad_()
    adam, losses = torch.optim.Adam([trained], lr=learning_rate), []
    with frozen_training(model), tqdm(total=steps, desc="per-head scales", unit="step", disable=None) as bar:
        for rows in _batches(text, steps):
            with scaled_heads(model, trained.exp()):
                loss = mean_loss(model, rows)
                adam.zero_grad()
                loss.backward()
            adam.step()
            losses.append(loss.item())
            bar.update()
            bar.set_postfix_str(f"loss {losses[-1]:.4f}")
    after = trained.detach().exp()
    return TrainedHeads(
        model_digest=tuning.inputs.digests["drope"],
        factor=factor,
        length=length,
        rows=len(text.rows),
        steps=steps,
        learning_rate=learning_rate,
        start=start,
        scales=tuple(map(tuple, after.tolist())),
        losses=tuple(losses),
        checks=tuple(_checks(tuning, model, length, before, after)),
    )


def mean_loss(model: "PreTrainedModel", rows: np.ndarray) -> "torch.Tensor":
    """Mean next-token loss, nats, of rows [n, length + 1], with its gradient; logits exist a part at a time."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    head = model.get_output_embeddings()
    ids = torch.from_numpy(rows.astype(np.int64)).to(model.device)
    states = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
    targets = ids[:, 1:].flatten()
    positions = max(1, LOGIT_ELEMENTS // model.config.vocab_size)

    def summed(piece: "torch.Tensor", tokens: "torch.Tensor") -> "torch.Tensor":
        return cross_entropy(head(piece).float(), tokens, reduction="sum")

    pieces = zip(states.split(positions), targets.split(positions), strict=True)
    return sum(checkpoint(summed, piece, tokens, use_reentrant=False) for piece, tokens in pieces) / len(targets)


@contextmanager
def frozen_training(model: "PreTrainedModel") -> Iterator[None]:
    """All weights frozen, and every layer's activations computed again in the backward pass, since rows are long."""
    model.requires_grad_(False)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()  # only the reentrant kind needs it
    model.train()  # transformers checkpoints in this mode alone; exports have no dropout
    try:
        yield
    finally:
        model.eval()
        model.activation_checkpointing_disable()


def _batches(text: Judge, steps: int) -> Iterator[np.ndarray]:
    """Rows of each step, [n, length + 1]: one after the other, and from the first again after the last."""
    size = min(len(text.rows), max(1, text.batch_tokens // (text.rows.shape[1] - 1)))
    for step in range(steps):
        yield text.rows[np.arange(step * size, (step + 1) * size) % len(text.rows)]


def _checks(
    tuning: Tuning, model: "PreTrainedModel", length: int, before: "torch.Tensor", after: "torch.Tensor"
) -> Iterator[Check]:
    """Losses with both, on what neither has seen and on needles."""
    judges = [tuning.unseen(length)] + ([tuning.judge(length)] if tuning.config.recall is not None else [])
    for judge in judges:
        if judge is not None:
            losses = []
            for scales in (before, after):
                with scaled_heads(model, scales):
                    losses.append(judge.loss(model))
            yield Check(on=judge.kind, rows=len(judge.rows), before=losses[0], after=losses[1])
