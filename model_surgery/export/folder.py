"""The folder of an exported model: weights, config.json, code where the class needs it, tokenizer, model card."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from foundation.files import atomic_path, write_json, write_text
from model_surgery.config import ExportConfig
from model_surgery.errors import SurgeryError
from model_surgery.export.formats import HubFormat, format_of
from model_surgery.export.losses import LOSS_LIMIT, compare_losses
from model_surgery.export.model_card import model_card
from model_surgery.export.tokenizer import copy_tokenizer
from model_surgery.export.weights import write_weights
from model_surgery.files import nothing_left_on_failure, read_json
from model_surgery.head_scales import HeadScales, check_head_scales
from model_surgery.layout import Layout
from model_surgery.shape import ModelShape, read_shape
from model_surgery.softmax_scale import SoftmaxScale

log = logging.getLogger(__name__)

HUB_CODE = Path(__file__).parents[1] / "hub_code"


def run(
    config: ExportConfig,
    *,
    layout_dir: Path,
    source: Path,
    out_dir: Path,
    export_check: Path | None,
    tokenizer: Path | None = None,
    head_scales: HeadScales | None = None,
) -> dict[str, Any]:
    """Writes the folder and checks it; returns the facts for the manifest.

    `tokenizer`: the folder of the one that the documents were encoded with, if it is not the source's.
    `export_check`: a file of tokens, labels and losses of the trained model (see recalibration); the exported model
    must give the same losses, its softmax scale undone.
    `head_scales`: softmax scales of single heads, folded into the weights; they are not undone, so without a check.

    Raises: SurgeryError if it does not, if a layout file is damaged or missing, or
    if no class of the wanted format computes this model; then nothing stays behind.
    """
    layout = Layout.load(layout_dir)
    if head_scales is not None:
        check_head_scales(layout.shape, head_scales)
    dtype = layout.shape.dtype if config.dtype == "source" else config.dtype
    if dtype not in LOSS_LIMIT:
        raise SurgeryError(f"export.dtype = {dtype!r} (of the source) cannot be written; set one of {[*LOSS_LIMIT]}")
    read_shape(source)
    source_config = read_json(source / "config.json")
    form = format_of(layout.shape, layout.position_embedding, config)
    scale = config.softmax_scale
    folded = scale.value if scale and scale.apply == "weights" else 1.0
    with nothing_left_on_failure(out_dir):
        write_weights(layout_dir, layout, form, out_dir, getattr(torch, dtype), folded, head_scales)
        write_json(out_dir / "config.json", exported_config(source_config, layout, form, dtype, scale, head_scales))
        for name in form.code:
            with atomic_path(out_dir / name) as temporary:
                shutil.copyfile(HUB_CODE / name, temporary)
        facts: dict[str, Any] = {
            "class": form.architecture,
            "dtype": dtype,
            "parameters": layout.shape.parameters,
            "tokenizer_files": copy_tokenizer(tokenizer or source, source, out_dir),
            "softmax_scale": None if scale is None else {"beta": scale.value, "apply": scale.apply},
        }
        if export_check is not None:
            applied = scale.value if scale and (folded != 1.0 or form.reads_softmax_scale) else 1.0
            facts |= compare_losses(out_dir, export_check, softmax_scale=applied)
            log.info("the export's losses differ from the trained model's by %.1e on average", facts["mean_difference"])
        write_text(out_dir / "README.md", model_card(layout, form, facts, scale, head_scales))
    return facts


def exported_config(
    source: dict[str, Any],
    layout: Layout,
    form: HubFormat,
    dtype: str,
    scale: SoftmaxScale | None,
    head_scales: HeadScales | None = None,
) -> dict[str, Any]:
    """config.json of the exported model: the source's numbers under the class of `form`."""
    kept: dict[str, Any] = {
        key: source[key] for key in ("vocab_size", "hidden_act", "initializer_range") if key in source
    }
    # SmolLM3's own defaults for these ids belong to a vocabulary of 128k entries, so they must be said, even as none.
    ids = {key: source.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    drope: dict[str, Any] = {"trained_steps": layout.trained_steps, "trained_tokens": layout.trained_tokens}
    read: dict[str, Any] = {}
    if scale:
        drope["softmax_scale"] = {**scale.model_dump(exclude_none=True), "beta": scale.value}
        if scale.apply == "config" and form.reads_softmax_scale:
            read = {"softmax_scale": scale.value * layout.shape.head_dim**-0.5}  # in place of 1 / sqrt(head_dim)
    if head_scales is not None:
        drope["head_scales"] = [list(layer) for layer in head_scales]
    return {
        "architectures": [form.architecture],
        **form.config,
        **kept,
        **ids,
        **_sizes(layout.shape),
        **read,
        "dtype": dtype,
        "use_cache": True,
        "attention_dropout": 0.0,
        "drope": drope,
    }


def _sizes(shape: ModelShape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tied,
    }
