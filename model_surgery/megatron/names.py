"""One name and one place for every parameter, whatever modules the model is made of.

The name is that of the layout. The place is the one that torch's layers give it: an optimizer that keeps its state end
to end knows parameters by nothing else, and would take one for another where a training goes on with other layers.
"""

from collections.abc import Iterable
from typing import Any

import torch

_PART_OF_A_MATRIX = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Norms that Transformer Engine makes one with the matrix that follows, and their names in the layout."""
_BEFORE = {"input_layernorm.weight": "self_attention.", "pre_mlp_layernorm.weight": "mlp."}
"""What each of them stands before."""
_EXTRA = "_extra_state"


def layout_name(name: str) -> str:
    """What the layout calls a parameter of the model."""
    for fused, plain in _PART_OF_A_MATRIX.items():
        if name.endswith(fused):
            return name.removesuffix(fused) + plain
    return name


def named_in_order(named: Iterable[tuple[str, torch.nn.Parameter]]) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters under the names of the layout, in the order of torch's layers."""
    renamed = [(layout_name(name), parameter) for name, parameter in named]
    places: dict[str, float] = {name: place for place, (name, _) in enumerate(renamed)}
    for norm, follows in _BEFORE.items():
        for name in [name for name in places if name.endswith(norm)]:
            within = name.removesuffix(norm) + follows
            places[name] = min(place for other, place in places.items() if other.startswith(within)) - 0.5
    return sorted(renamed, key=lambda item: places[item[0]])


def keep_layout_names(model: torch.nn.Module) -> None:
    """From now on the model's state dict has the names of the layout and nothing else, and is loaded by them."""
    model.register_state_dict_post_hook(_by_layout_names)
    model.register_load_state_dict_pre_hook(_by_module_names)
    model.register_load_state_dict_post_hook(_without_extra_state)


def _by_layout_names(model: torch.nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    for name in list(state):
        if name.endswith(_EXTRA):
            del state[name]
        elif (plain := layout_name(name)) != name:
            state[plain] = state.pop(name)


def _by_module_names(model: torch.nn.Module, state: dict[str, Any], prefix: str, *others: object) -> None:
    for name, _ in torch.nn.Module.named_parameters(model):
        if (plain := layout_name(name)) != name and f"{prefix}{plain}" in state:
            state[f"{prefix}{name}"] = state.pop(f"{prefix}{plain}")


def _without_extra_state(model: torch.nn.Module, keys: Any) -> None:
    """Checkpoints need not have what Transformer Engine or Megatron-core would add, and may have it."""
    for names in (keys.missing_keys, keys.unexpected_keys):
        names[:] = [name for name in names if not name.endswith(_EXTRA)]
