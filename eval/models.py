"""The model folders that an evaluation reads: what they are, and what must hold of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.config import Variant
from eval.digests import digest_files
from eval.errors import EvaluationError
from model_surgery.rotation import rotating_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

ROPE_TYPES = ("llama", "qwen2", "qwen3", "llama_drope", "qwen2_drope")
KNOWN_TYPES = (*ROPE_TYPES, "smollm3")
"""Model types whose logits are the output layer applied to the decoder's states, with nothing in between."""

_TOKENIZER_FILES = ("*.json", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class Models:
    """The inputs of an evaluation, all local.

    source: HF folder of the RoPE model. drope: HF folder of the recalibrated export. control: HF folder of the source
    trained on the same tokens with RoPE kept. tokenizer: HF folder. validation: prefixes of Megatron .bin/.idx files.
    """

    source: Path
    drope: Path | None
    control: Path | None
    tokenizer: Path
    validation: tuple[Path, ...]

    def folder(self, variant: Variant) -> Path:
        """The folder that `variant` is made from.

        Raises: EvaluationError where that model is not given.
        """
        if variant in ("drope", "drope_scaled"):
            folder, needed = self.drope, "the recalibrated export"
        elif variant == "control":
            folder, needed = self.control, "the model trained on the same tokens with RoPE kept"
        else:
            folder, needed = self.source, "the source model"
        if folder is None:
            raise EvaluationError(
                f"variants: {variant} needs {needed}, which is absent; make it, or take {variant} out of variants"
            )
        return folder


def role_of(variant: Variant) -> str:
    """The role of the folder that `variant` is made from: source, drope or control."""
    return {"drope": "drope", "drope_scaled": "drope", "control": "control"}.get(variant, "source")


def read_config(folder: Path) -> "PretrainedConfig":
    """The HF config of a model folder.

    Raises: EvaluationError where the folder holds no model of a known type with weights in a known format.
    """
    from transformers import AutoConfig

    from model_surgery.transformers_registration import register_drope

    if not (folder / "config.json").is_file():
        raise EvaluationError(f"{folder}: no config.json there; give the folder of a Hugging Face model")
    register_drope()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{folder}/config.json: unknown format: {_one_line(error)}") from None
    if config.model_type not in KNOWN_TYPES:
        raise EvaluationError(f"{folder}: model type {config.model_type!r}; this evaluates {', '.join(KNOWN_TYPES)}")
    if not weight_files(folder):
        raise EvaluationError(
            f"{folder}: no *.safetensors nor pytorch_model*.bin weights there; other formats are not loaded"
        )
    return config


def head_dim_of(config: "PretrainedConfig") -> int:
    """Dimensions of a head; half as many pairs of them rotate."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def require_rope(folder: Path, config: "PretrainedConfig") -> None:
    """Raises: EvaluationError unless every layer rotates with plain RoPE (the start of its scalings)."""
    rope_type = config.rope_parameters.get("rope_type")
    if config.model_type not in ROPE_TYPES or rope_type != "default":
        raise EvaluationError(
            f"{folder}: {config.model_type} with rope_type {rope_type!r}; the RoPE variants start from a llama, qwen2 "
            "or qwen3 model with rope_type 'default'"
        )
    if not rotating_layers(config.to_dict()):
        raise EvaluationError(f"{folder}: attention_type {config.attention_type!r} has no RoPE; give a model with it")


def require_no_rope(folder: Path, config: "PretrainedConfig") -> None:
    """Raises: EvaluationError unless no layer rotates."""
    if rotating := rotating_layers(config.to_dict()):
        raise EvaluationError(f"{folder}: layers {rotating} still have RoPE; give the exported model without it")


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Raises: EvaluationError where the folder has no tokenizer that transformers can load."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such tokenizer folder; give one that has tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # AutoTokenizer ends in many kinds of error, among them plain Exception from the Rust side.
        raise EvaluationError(f"{folder}: unknown tokenizer format: {_one_line(error)}") from None
    tokenizer.model_max_length = 2**62  # longer texts are the purpose here; it would warn of each
    return tokenizer


def decoded(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """The text of one sequence of token ids."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)
    assert isinstance(text, str)  # transformers gives a list for several sequences alone
    return text


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the folder's tokenizer files."""
    names = {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)}
    skipped = ("config.json", "generation_config.json", "model.safetensors.index.json")
    return digest_files([path for path in names if path.name not in skipped])


def model_digest(folder: Path) -> str:
    """SHA-256 over config and weights (see `digest_files` on large ones)."""
    return digest_files([folder / "config.json", *weight_files(folder)])


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files, or torch's own where there are none, as transformers has it; it runs no code in those."""
    return list(folder.glob("*.safetensors")) or list(folder.glob("pytorch_model*.bin"))


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
