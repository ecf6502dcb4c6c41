"""Builds the Megatron-core GPTModel that a layout's slices are the state of."""

from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import (
    gather_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from model_surgery.architectures import Join, rules
from model_surgery.errors import SurgeryError
from model_surgery.megatron.attention import SDPAttention, document_mask
from model_surgery.megatron.compiled import CompiledLayer, compile_loss
from model_surgery.megatron.names import keep_layout_names, named_in_order
from model_surgery.megatron.output_layer import OutputLayer
from model_surgery.megatron.qk_norm import norm_specs
from model_surgery.megatron.recompute import RecomputedLayer
from model_surgery.megatron.sequence_parallel import RowPartNorm, forget_random_states
from model_surgery.megatron.swiglu import SwiGLU
from model_surgery.megatron.te.settings import FP8
from model_surgery.shape import ModelShape, PositionEmbedding

if TYPE_CHECKING:
    from model_surgery.megatron.te.fp8 import FP8Switch

Layers = Literal["torch", "compiled", "transformer_engine"]
"""What layers are made of: torch's functions, the same fused by its compiler, or Transformer Engine's modules."""


def start_parallel(tensor_parallel: int, timeout: timedelta = timedelta(minutes=30)) -> None:
    """Makes Megatron-core's process groups; torch.distributed must be initialised, world size a multiple of TP.

    timeout: of their communication, rounded up to minutes.
    """
    minutes = -(-timeout // timedelta(minutes=1))
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_parallel, distributed_timeout_minutes=minutes
    )


def build_model(
    shape: ModelShape,
    *,
    position_embedding: PositionEmbedding,
    dtype: torch.dtype = torch.float32,
    max_length: int | None = None,
    sequence_parallel: bool = False,
    recompute: bool = False,
    layers: Layers = "torch",
    fp8: FP8 | None = None,
) -> "LanguageModel":
    """This rank's part of the model, weights not yet loaded. Process groups must exist (`start_parallel`).

    Forward: token ids [batch, length] -> logits [batch, length, vocab / TP], or with labels the loss [batch, length].
    `sequence_parallel`: see its module; the length must be a multiple of TP. `recompute`: see `RecomputedLayer`.
    `layers`: transformer_engine only where `te.availability` finds it, compiled where there is a compiler, and neither
    recomputed nor under ZeRO 3; parameters have the same names whatever they are.
    `fp8`: what these layers may compute in FP8, once `model.fp8.active` is set; not with `recompute`, which would let
    largest values be counted twice.
    """
    tensor_parallel = parallel_state.get_tensor_model_parallel_world_size()
    sequence_parallel = sequence_parallel and tensor_parallel > 1  # one rank has whole rows anyway
    padded = shape.padded(tensor_parallel)
    config = TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=padded.ffn,
        num_attention_heads=padded.heads,
        num_query_groups=padded.kv_heads,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        use_te_activation_func=True,  # not TE's: the module that `block_spec` names
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tensor_parallel,
        sequence_parallel=sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        # Copies of the weights in FP8 would only be renewed where Megatron-core's own training loop says when.
        disable_parameter_transpose_cache=True,
    )
    if sequence_parallel:
        forget_random_states()
    switch = None
    if fp8 is not None:
        from model_surgery.megatron.te.fp8 import FP8Switch

        switch = FP8Switch(fp8, shape.layers)
    model = LanguageModel(
        fp8=switch,
        words=true_words(shape.vocab, padded.vocab),
        config=config,
        transformer_layer_spec=block_spec(shape, tensor_parallel, sequence_parallel, recompute, layers, switch),
        vocab_size=padded.vocab,
        max_sequence_length=max_length or shape.context,
        share_embeddings_and_output_weights=shape.tied,
        position_embedding_type=position_embedding,
        rotary_base=shape.rope_theta,
    )
    mark_partitioned(model, shape)
    mask_padded_vocabulary(model.output_layer)
    if layers == "compiled":
        compile_loss(model.output_layer)
    return model.to(dtype)


class LanguageModel(GPTModel):
    """Megatron-core's, which with a `loss_mask` gives the sum of weight times loss over all tokens, a scalar.

    Whatever modules it is made of, it calls its parameters by the names of the layout, in one order, and its state dict
    holds nothing else.
    """

    def __init__(self, *, fp8: "FP8Switch | None", words: int, **of_gpt: Any) -> None:
        """words: rows of this rank's output layer that are no padding. of_gpt: GPTModel's arguments."""
        super().__init__(**of_gpt)
        self.fp8 = fp8
        self.output_layer: OutputLayer = OutputLayer(self.output_layer, words)  # GPTModel names the class itself
        keep_layout_names(self)

    def named_parameters(self, *arguments: Any, **others: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return iter(named_in_order(super().named_parameters(*arguments, **others)))

    def forward(self, *arguments: Any, **others: Any) -> Tensor:
        with nullcontext() if self.fp8 is None else self.fp8.model(self.training):
            return super().forward(*arguments, **others)

    def _postprocess(
        self, hidden_states: Tensor, *, labels: Tensor | None, loss_mask: Tensor | None, **others: object
    ) -> Tensor:
        if loss_mask is None or labels is None:
            return super()._postprocess(hidden_states, labels=labels, loss_mask=loss_mask, **others)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        return self.output_layer(hidden_states, weight=weight, labels=labels.t(), token_weights=loss_mask.t())


def block_spec(
    shape: ModelShape,
    tensor_parallel: int,
    sequence_parallel: bool,
    recompute: bool,
    layers: Layers,
    fp8: "FP8Switch | None",
) -> TransformerBlockSubmodules:
    """Megatron-core's own layers, without its fused extensions or of Transformer Engine, and the modules of ours."""
    if layers == "transformer_engine":
        from model_surgery.megatron.te.layers import block_spec as of_transformer_engine

        layer, last_norm = of_transformer_engine(sequence_parallel=sequence_parallel, fp8=fp8)
    else:
        layer = get_gpt_layer_local_spec(normalization="RMSNorm")
        layer.submodules.self_attention.submodules.core_attention = SDPAttention
        layer.submodules.mlp.submodules.activation_func = SwiGLU
        if sequence_parallel:
            layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RowPartNorm
        # Left to itself, Megatron-core would take another norm at the end than in the layers where it finds TE.
        last_norm = layer.submodules.input_layernorm
    for name, norm in norm_specs(shape, tensor_parallel).items():
        setattr(layer.submodules.self_attention.submodules, name, norm)
    if layers == "compiled":
        layer.module = CompiledLayer
    if recompute:
        layer.module = RecomputedLayer
    return TransformerBlockSubmodules(layer_specs=[layer] * shape.layers, layer_norm=last_norm)


def true_words(vocab: int, padded: int) -> int:
    """How many of this rank's rows of a vocabulary that is padded from `vocab` to `padded` ids are no padding."""
    rows = padded // parallel_state.get_tensor_model_parallel_world_size()
    return min(max(0, vocab - rows * parallel_state.get_tensor_model_parallel_rank()), rows)


def mask_padded_vocabulary(output_layer: OutputLayer) -> None:
    """Gives ids that are padding the lowest logit that there is: they weigh nothing in a softmax or a loss."""
    rows, real = output_layer.output_size_per_partition, output_layer.true_size
    if real == rows:
        return

    def mask(module: torch.nn.Module, inputs: object, output: Tensor | tuple[Tensor, Tensor | None]) -> object:
        if isinstance(output, Tensor):
            return None
        logits, bias = output
        lowest = torch.finfo(logits.dtype).min
        return torch.nn.functional.pad(logits[..., :real], (0, rows - real), value=lowest), bias

    output_layer.register_forward_hook(mask)


def mark_partitioned(model: GPTModel, shape: ModelShape) -> None:
    """Tells gradient-norm code which parameters are slices, so that it sums those over TP ranks and not the others.

    Megatron-core marks matrices while it draws initial weights, which is switched off here (biases it always marks);
    without the marks DeepSpeed takes every parameter for a replicated one, and the norm that gradients are clipped by
    comes out too small.
    """
    parameters = dict(model.named_parameters())
    for rule in rules(shape):
        parameter = parameters[rule.target]
        if rule.join is not Join.REPLICATED and not hasattr(parameter, "tensor_model_parallel"):
            axis = 1 if rule.join in (Join.HEAD_COLUMNS, Join.FFN_COLUMNS) else 0
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=axis, stride=1)


def load_slices(model: GPTModel, slices: dict[str, Tensor]) -> None:
    """Copies one rank's slices into the model; names and shapes must be exactly the model's.

    Raises: SurgeryError naming the first tensor that does not fit; then the model is as it was.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor is not None}
    if names := state.keys() ^ slices.keys():
        raise SurgeryError(f"layout: tensor {min(names)} is in only one of layout and model")
    for name, tensor in slices.items():
        if tensor.shape != state[name].shape:
            raise SurgeryError(f"layout: {name} has shape {list(tensor.shape)}, model {list(state[name].shape)}")
    for name, tensor in slices.items():
        state[name].copy_(tensor)


def token_losses(model: torch.nn.Module, tokens: Tensor, labels: Tensor, documents: Tensor | None = None) -> Tensor:
    """Cross-entropy of every label in fp32, nats, [batch, length]; `model` may be wrapped in an engine.

    With `documents`, the number of every token's document [batch, length], tokens attend within their document only.
    That holds with RoPE as well: it sees distances alone, so a document in mid-row is treated as one at the start.
    """
    mask = None if documents is None else document_mask(documents)
    return model(tokens, _positions(tokens), mask, labels=labels)


def weighted_loss(
    model: torch.nn.Module, tokens: Tensor, labels: Tensor, weights: Tensor, documents: Tensor | None = None
) -> Tensor:
    """The sum over all tokens of `weights` [batch, length] times the token's loss: `token_losses` for training."""
    mask = None if documents is None else document_mask(documents)
    return model(tokens, _positions(tokens), mask, labels=labels, loss_mask=weights)


def full_logits(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Logits [batch, length, padded vocab], gathered from all TP ranks onto every one."""
    with torch.inference_mode():
        return gather_from_tensor_model_parallel_region(model(tokens, _positions(tokens), None)).contiguous()


def _positions(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
