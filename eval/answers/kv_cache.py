"""Keys and values of earlier tokens in buffers of the full length, so that a token is written and nothing copied."""

from typing import TYPE_CHECKING

from transformers.cache_utils import Cache, DynamicLayer

from eval.models import head_dim_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class RoomyLayer(DynamicLayer):
    """transformers' growing layer, which joins old and new by copying both, over buffers with room for more instead.

    room: keys and values, [2, rows, heads, capacity, head_dim], the first `tokens` of which are there.
    """

    def __init__(self, room: "torch.Tensor", tokens: int = 0) -> None:
        super().__init__()
        self.lazy_initialization(room[0], room[1])
        self.room = room
        self.show(tokens)

    def update(
        self, key_states: "torch.Tensor", value_states: "torch.Tensor", *args: object, **kwargs: object
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Writes [rows, heads, tokens, head_dim] behind what is there; all that is there now."""
        past = self.get_seq_length()
        until = past + key_states.shape[-2]
        self.room[0, :, :, past:until] = key_states
        self.room[1, :, :, past:until] = value_states
        return self.show(until)

    def show(self, tokens: int) -> tuple["torch.Tensor", "torch.Tensor"]:
        """From now on the first `tokens` tokens are there; their keys and values."""
        keys, values = self.room[:, :, :, :tokens]
        self.keys, self.values = keys, values
        return keys, values


class RoomyCache(Cache):
    """A `RoomyLayer` for every layer of a model."""

    def __init__(self, layers: list[RoomyLayer]) -> None:
        super().__init__(layers=[*layers])
        self.roomy_layers = layers

    @classmethod
    def of(cls, model: "PreTrainedModel", rows: int, capacity: int) -> "RoomyCache":
        """An empty one."""
        import torch

        config = model.config
        size = (2, rows, config.num_key_value_heads, capacity, head_dim_of(config))
        rooms = (torch.empty(size, dtype=model.dtype, device=model.device) for _ in range(config.num_hidden_layers))
        return cls([RoomyLayer(room) for room in rooms])

    def show(self, tokens: int) -> None:
        """From now on the first `tokens` tokens are there."""
        for layer in self.roomy_layers:
            layer.show(tokens)

    def keep(self, rows: "torch.Tensor") -> None:
        """Drops all other rows, one layer after the other, so that there is never much more than before."""
        for layer in self.roomy_layers:
            tokens = layer.get_seq_length()
            layer.room = layer.room[:, rows]
            layer.show(tokens)

    def rows(self, part: slice) -> "RoomyCache":
        """These rows alone, in the same memory."""
        return RoomyCache([RoomyLayer(layer.room[:, part], layer.get_seq_length()) for layer in self.roomy_layers])

    def start_from(self, other: "RoomyCache", tokens: int) -> None:
        """Takes the first `tokens` tokens of a cache of one row, for each of its own."""
        for layer, source in zip(self.roomy_layers, other.roomy_layers, strict=True):
            layer.room[:, :, :, :tokens] = source.room[:, :, :, :tokens]
            layer.show(tokens)
