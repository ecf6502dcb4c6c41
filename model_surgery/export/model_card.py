"""The README.md of an exported model."""

import re
from typing import Any

from model_surgery.export.formats import HubFormat
from model_surgery.head_scales import HeadScales
from model_surgery.layout import Layout
from model_surgery.softmax_scale import SoftmaxScale, scaled_tensors

_NORMS = {"full": "over all heads together", "per_head": "over each head"}


def model_card(
    layout: Layout,
    form: HubFormat,
    facts: dict[str, Any],
    scale: SoftmaxScale | None = None,
    head_scales: HeadScales | None = None,
) -> str:
    """A model card: what the model is, from what it was made, how to load it."""
    if layout.position_embedding == "none":
        history = "made from a RoPE model by dropping its rotation and recalibrating at the original context length"
        if layout.source_position_embedding == "none":
            history = "trained further from a model that had none already"
        what = (
            f"A transformer **without positional embeddings**, {history} (DroPE: Gelberg et al. 2025, "
            "[arXiv:2512.12167](https://arxiv.org/abs/2512.12167))."
        )
    else:
        what = "The source model with RoPE kept, trained by the same code: a DroPE run's control, or where one starts."
    name = source_name(layout.source).rstrip("/").rsplit("/", 1)[-1]
    kind = "positional embeddings dropped" if layout.position_embedding == "none" else "RoPE kept"
    table = "\n".join(f"| {row} | {value} |" for row, value in _lineage(layout, form, facts).items())
    trust = ", trust_remote_code=True" if form.code else ""
    return f"""---
library_name: transformers
tags: [drope, long-context]
---
# {name}, {kind}

{what}

| | |
|---|---|
{table}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder"{trust})
tokenizer = AutoTokenizer.from_pretrained("this folder")
```

{_code(form)} {form.elsewhere}

{_softmax(layout, form, scale) if head_scales is None else _heads(layout, head_scales)}
"""


def _lineage(layout: Layout, form: HubFormat, facts: dict[str, Any]) -> dict[str, str]:
    """From what the model was made and how, as rows of a table."""
    rows = {
        "source": source_name(layout.source),
        "source fingerprint": f"`{layout.source_fingerprint[:16]}`",
        "layout digest": f"`{layout.digest()[:16]}` (tensor parallel {layout.tensor_parallel})",
        "training context": f"{layout.shape.context} tokens",
        "steps / tokens": f"{layout.trained_steps:,} / {layout.trained_tokens:,}",
        "parameters": f"{layout.shape.parameters:,} ({facts['dtype']})",
    }
    norms = {"queries": layout.shape.q_norm, "keys": layout.shape.k_norm}
    if any(kind != "none" for kind in norms.values()):
        begun = f"put in before training, weights {layout.inserted_norms}" if layout.inserted_norms else "the source's"
        kinds = ", ".join(f"{part} {_NORMS[kind]}" for part, kind in norms.items() if kind != "none")
        rows["RMSNorm"] = f"{kinds}; {begun}"
    if "mean_difference" in facts:
        rows["export check"] = (
            f"loss {facts['loss_exported']:.4f} against {facts['loss_trained']:.4f} at the end of training, mean "
            f"difference per token {facts['mean_difference']:.1e} over {facts['probe_tokens']} tokens"
        )
    return rows | {"class": f"`{form.architecture}`: {form.why}"}


def _code(form: HubFormat) -> str:
    if form.code:
        return (
            f"`trust_remote_code` runs {' and '.join(f'`{name}`' for name in form.code)} of this folder: no class of "
            "transformers has this model's norms."
        )
    return "The class is one of transformers' own; no remote code is needed."


def _softmax(layout: Layout, form: HubFormat, scale: SoftmaxScale | None) -> str:
    """What was done about the softmax scale, and what the reader has to do."""
    meaning = "Beta is a factor of the attention logits, softmax(beta q.k / sqrt(head_dim))"
    if scale is None:
        return (
            "No softmax scale is applied. Beyond the training context a scale of beta = 1 + c ln s (s = length / "
            f"training context) often helps, where c is tuned per model. {meaning}."
        )
    if scale.apply == "weights":
        how = f"It is multiplied into every layer's {_folded(layout)}; add none."
        return f"**Softmax scale: {scale.formula()}, folded into the weights.** {meaning}. {how}"
    how = (
        "This model's code applies `softmax_scale` of config.json, which is beta / sqrt(head_dim)."
        if form.reads_softmax_scale
        else f"It is documented in config.json (`drope.softmax_scale`) and **not applied**: `{form.architecture}` does "
        "not read it. Multiply every layer's `self_attn.scaling` by beta, or export with `apply: weights`."
    )
    return f"**Softmax scale: {scale.formula()}, left in config.json.** {meaning}. {how}"


def _folded(layout: Layout) -> str:
    """The tensors that hold a folded scale."""
    ends = [end for end in scaled_tensors(layout.shape) if layout.shape.qkv_bias or not end.endswith("bias")]
    return " and ".join(f"`{end}`" for end in ends)


def _heads(layout: Layout, scales: HeadScales) -> str:
    """What was done about the scales of single heads."""
    every = [scale for layer in scales for scale in layer]
    return (
        f"**Softmax scale: one for each query head and layer, {min(every):.3g} to {max(every):.3g}, folded into the "
        "weights** (HeadScale, [arXiv:2404.12224](https://arxiv.org/abs/2404.12224)). They are factors of the head's "
        f"attention logits, listed in config.json (`drope.head_scales`) and multiplied into every layer's "
        f"{_folded(layout)}; add none."
    )


def source_name(path: str) -> str:
    """The Hub id of a checkpoint in the Hub's cache (.../models--OWNER--NAME/snapshots/REVISION), else its path."""
    cached = re.search(r"(?:^|/)models--([^/]+)/snapshots/[^/]+/?$", path)
    return cached[1].replace("--", "/", 1) if cached else path
