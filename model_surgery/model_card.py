"""The README.md of an exported model."""

import re
from typing import Any

from model_surgery.layout import Layout


def model_card(layout: Layout, facts: dict[str, Any]) -> str:
    """A model card: what the model is, from what it was made, how to load it."""
    if layout.position_embedding == "none":
        what = (
            "A transformer **without positional embeddings**, made from a RoPE model by dropping its rotation and "
            "recalibrating at the original context length (DroPE, arXiv:2512.12167)."
        )
    else:
        what = "The source model with RoPE kept, trained by the same code: a DroPE run's control, or where one starts."
    rows = {
        "source": source_name(layout.source),
        "source fingerprint": f"`{layout.source_fingerprint[:16]}`",
        "layout digest": f"`{layout.digest()[:16]}`",
        "training context": f"{layout.shape.context} tokens",
        "steps / tokens": f"{layout.trained_steps:,} / {layout.trained_tokens:,}",
        "parameters": f"{layout.shape.parameters:,} ({facts['dtype']})",
    }
    if "mean_difference" in facts:
        rows["export check"] = (
            f"loss {facts['loss_exported']:.4f} against {facts['loss_trained']:.4f} at the end of training, mean "
            f"difference per token {facts['mean_difference']:.1e} over {facts['probe_tokens']} tokens"
        )
    name = source_name(layout.source).rstrip("/").rsplit("/", 1)[-1]
    kind = "positional embeddings dropped" if layout.position_embedding == "none" else "RoPE kept"
    table = "\n".join(f"| {row} | {value} |" for row, value in rows.items())
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

model = AutoModelForCausalLM.from_pretrained("this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")
```

Beyond the training context, a softmax scale of 1 + c ln s on the attention logits (s = length / training context) often
helps; c is tuned per model.
"""


def source_name(path: str) -> str:
    """The Hub id of a checkpoint in the Hub's cache (.../models--OWNER--NAME/snapshots/REVISION), else its path."""
    cached = re.search(r"(?:^|/)models--([^/]+)/snapshots/[^/]+/?$", path)
    return cached[1].replace("--", "/", 1) if cached else path
