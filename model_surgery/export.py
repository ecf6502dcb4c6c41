"""A layout becomes a Hugging Face folder that stock transformers loads: SmolLM3 without RoPE, or the source's class.

`SmolLM3ForCausalLM` with `no_rope_layers = [0, 0, ...]` is Llama without positional embeddings, weight for weight, and
Qwen2 with one bias more, of zeros (https://huggingface.co/docs/transformers/model_doc/smollm3).
"""

import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from model_surgery.architectures import Join
from model_surgery.config import ExportConfig
from model_surgery.errors import SurgeryError
from model_surgery.files import atomic_path, nothing_left_on_failure, read_json, write_json, write_text
from model_surgery.layout import Entry, Layout, read_sources
from model_surgery.model_card import model_card
from model_surgery.shape import ModelShape, read_shape

log = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
_SHARD_BYTES = 4 << 30
_LOSS_LIMIT = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest accepted mean difference of a token's loss between training and export, by the coarser of their dtypes."""


def run(
    config: ExportConfig,
    *,
    layout_dir: Path,
    source: Path,
    out_dir: Path,
    probe: Path | None,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Writes the folder and checks it; returns the facts for the manifest.

    `tokenizer`: the folder of the one that the documents were encoded with, if it is not the source's.
    `probe`: tokens, labels and losses of the trained model (see recalibration); the exported model must give the same
    losses. Raises: SurgeryError if it does not, or if a layout file is damaged or missing; then nothing stays behind.
    """
    layout = Layout.load(layout_dir)
    dtype = layout.shape.dtype if config.dtype == "source" else config.dtype
    if dtype not in _LOSS_LIMIT:
        raise SurgeryError(f"export.dtype = {dtype!r} (of the source) cannot be written; set one of {[*_LOSS_LIMIT]}")
    read_shape(source)
    source_config = read_json(source / "config.json")
    with nothing_left_on_failure(out_dir):
        write_weights(layout_dir, layout, out_dir, getattr(torch, dtype))
        write_json(out_dir / "config.json", exported_config(source_config, layout, dtype))
        copied = copy_tokenizer(tokenizer or source, source, out_dir)
        facts: dict[str, Any] = {"dtype": dtype, "parameters": layout.shape.parameters, "tokenizer_files": copied}
        if probe is not None:
            facts |= compare_losses(out_dir, probe)
            log.info("the export's losses differ from the trained model's by %.1e on average", facts["mean_difference"])
        write_text(out_dir / "README.md", model_card(layout, facts))
    return facts


def write_weights(layout_dir: Path, layout: Layout, out_dir: Path, dtype: torch.dtype) -> None:
    """model-*.safetensors with their index; one layout tensor in memory at a time, plus the shard being filled."""
    size = layout.shape.parameters * dtype.itemsize
    shards = max(1, -(-size // _SHARD_BYTES))
    limit = -(-size // shards)
    pending: dict[str, torch.Tensor] = {}
    weight_map: dict[str, str] = {}
    pending_bytes = total = 0

    def flush() -> None:
        nonlocal pending_bytes
        name = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        with atomic_path(out_dir / name) as temporary:
            save_file(pending, temporary, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(pending, name))
        pending.clear()
        pending_bytes = 0

    for entry in tqdm(layout.tensors, desc="export", unit="tensor", disable=None):
        for name, tensor in exported_tensors(layout_dir, layout, entry).items():
            pending[name] = _cast(tensor, dtype, name)
            pending_bytes += tensor.numel() * dtype.itemsize
            total += tensor.numel() * dtype.itemsize
        if pending_bytes >= limit:
            flush()
    if pending:
        flush()
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(out_dir / "model.safetensors.index.json", index)


def exported_tensors(layout_dir: Path, layout: Layout, entry: Entry) -> dict[str, torch.Tensor]:
    """The tensors of the exported model that one tensor of the layout makes, under their names there.

    SmolLM3 has biases on all four projections of the attention or on none, Qwen2 not on the last: there it is zero.
    """
    tensors = read_sources(layout_dir, layout, entry)
    if _has_output_bias(layout) and entry.join is Join.QKV and entry.target.endswith("bias"):
        name = entry.sources[0].replace("q_proj", "o_proj")
        tensors[name] = torch.zeros(layout.shape.hidden, dtype=tensors[entry.sources[0]].dtype)
    return tensors


def _has_output_bias(layout: Layout) -> bool:
    return layout.shape.qkv_bias and layout.position_embedding == "none"


def exported_config(source: dict[str, Any], layout: Layout, dtype: str) -> dict[str, Any]:
    """config.json of the exported model: the source's, with the architecture that has or has not RoPE."""
    kept = {key: source[key] for key in ("vocab_size", "hidden_act", "initializer_range") if key in source}
    # SmolLM3's own defaults for these ids belong to a vocabulary of 128k entries, so they must be said, even as none.
    ids = {key: source.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        **_architecture(layout),
        **kept,
        **ids,
        **_sizes(layout.shape),
        "dtype": dtype,
        "use_cache": True,
        "attention_bias": _has_output_bias(layout),
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "drope": {"trained_steps": layout.trained_steps, "trained_tokens": layout.trained_tokens},
    }


def _architecture(layout: Layout) -> dict[str, Any]:
    rope = {"rope_theta": layout.shape.rope_theta, "rope_type": "default"}
    if layout.position_embedding == "rope":
        name = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[layout.shape.model_type]
        return {"architectures": [name], "model_type": layout.shape.model_type, "rope_parameters": rope}
    return {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "no_rope_layers": [0] * layout.shape.layers,
        "layer_types": ["full_attention"] * layout.shape.layers,
        "use_sliding_window": False,
        "rope_parameters": rope,
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


def copy_tokenizer(tokenizer: Path, source: Path, out_dir: Path) -> list[str]:
    """Copies the tokenizer's files, and the source's generation config; returns the names of what was written.

    Files are copied byte for byte but tokenizer_config.json, in which the class may have to be another one.
    """
    folders = dict.fromkeys(TOKENIZER_FILES, tokenizer) | {"generation_config.json": source}
    names = [name for name, folder in folders.items() if (folder / name).is_file()]
    for name in names:
        with atomic_path(out_dir / name) as temporary:
            shutil.copyfile(folders[name] / name, temporary)
    settings = read_json(tokenizer / _TOKENIZER_CONFIG) if _TOKENIZER_CONFIG in names else {}
    wanted = tokenizer_settings(settings, names)
    if wanted == settings:
        return names
    write_json(out_dir / _TOKENIZER_CONFIG, wanted)
    return sorted({*names, _TOKENIZER_CONFIG})


def tokenizer_settings(settings: dict[str, Any], files: Collection[str]) -> dict[str, Any]:
    """tokenizer_config.json with the class by which AutoTokenizer gives the ids that the model was trained with.

    Beside a tokenizer.json that is PreTrainedTokenizerFast, which takes the file as it is. LlamaTokenizer (since
    transformers 5) builds a tokenizer of its own from the file's vocabulary and merges: it cuts some texts otherwise.
    A tokenizer.model alone needs LlamaTokenizer; with no class named, AutoTokenizer cuts every text otherwise.
    """
    if "tokenizer.json" in files:
        kept = {key: value for key, value in settings.items() if key != "auto_map"}  # names a class in remote code
        return {**kept, "tokenizer_class": "PreTrainedTokenizerFast"}
    if "tokenizer.model" in files:
        return {"tokenizer_class": "LlamaTokenizer", **settings}
    return settings


def compare_losses(folder: Path, probe: Path) -> dict[str, Any]:
    """Loss of every probe token by transformers on the exported folder, against the trained model's.

    Raises: SurgeryError if the mean absolute difference exceeds the limit of the exported dtype.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    wanted = load_file(probe)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.inference_mode():
        tokens = wanted["tokens"]
        logits = model(tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits.float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted["labels"].flatten(), reduction="none")
    difference = (losses - wanted["losses"].flatten()).abs()
    exported = str(model.dtype).removeprefix("torch.")
    trained = probe_dtype(probe)
    facts = {
        "probe_tokens": tokens.numel(),
        "loss_trained": wanted["losses"].mean().item(),
        "loss_exported": losses.mean().item(),
        "mean_difference": difference.mean().item(),
        "max_difference": difference.max().item(),
        "limit": max(_LOSS_LIMIT[exported], _LOSS_LIMIT[trained]),
    }
    if not facts["mean_difference"] <= facts["limit"]:  # so that NaN is refused too
        raise SurgeryError(
            f"{folder}: the exported model's loss differs from the trained one's by {facts['mean_difference']:.2e} per "
            f"token (limit {facts['limit']:.0e}); the layout it was made from is damaged or from other code"
        )
    return facts


def probe_dtype(probe: Path) -> str:
    """The dtype in which the trained model computed the probe's losses."""
    with safe_open(probe, framework="pt") as handle:
        return (handle.metadata() or {}).get("dtype", "float32")


def _cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    cast = tensor.to(dtype).contiguous()
    if not torch.isfinite(cast).all():
        raise SurgeryError(f"{name}: holds NaN, infinity or a number too large for {dtype}; export as float32 to see")
    return cast
