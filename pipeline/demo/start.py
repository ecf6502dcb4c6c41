"""The random Llama that the demo's RoPE checkpoint is trained from, and its word-level tokenizer."""

import json
from pathlib import Path

from model_surgery.random_weights import draw_checkpoint
from pipeline.demo.corpus import FOODS, NAMES

UNKNOWN, END = "<unk>", "<eos>"
LAYERS = 4
CONTEXT = 64
ROPE_THETA = 100.0
"""RoPE's base. Its lowest frequency turns 1.1 rad over the context of 64 tokens (Llama 2: 0.5 rad over 4,096)."""


def vocabulary() -> dict[str, int]:
    """Word to token id: the two special tokens, the names, the foods."""
    return {word: number for number, word in enumerate((UNKNOWN, END, *NAMES, *FOODS))}


def write_random_model(folder: Path, *, seed: int = 1, rope_theta: float = ROPE_THETA) -> None:
    """Writes a 4-layer Llama with random weights and its tokenizer.

    The initialisation decides whether recall is learnt at all at this size: token embeddings of standard deviation 0.5
    (at 0.02 a token's identity drowns in the residual stream), matrices of 1 / sqrt(inputs), and the projections that
    end in the residual stream divided by sqrt(2 layers) (Radford et al. 2019).
    """
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary()),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": vocabulary()[END],
        "dtype": "float32",
    }
    write_tokenizer(folder)
    draw_checkpoint(folder, config, seed, std=_std)


def _std(name: str, size: tuple[int, ...]) -> float:
    if "embed_tokens" in name:
        return 0.5
    ends_in_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
    return size[1] ** -0.5 / ((2 * LAYERS) ** 0.5 if ends_in_residual else 1)


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer of whole words that transformers' AutoTokenizer loads."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([UNKNOWN, END])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
        "eos_token": END,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
