"""Keys and values of earlier tokens in buffers of the full length, so that a token is written and nothing copied."""

from typing import TYPE_CHECKING

from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    import torch


class RoomyLayer(DynamicLayer):
    """transformers' growing layer, which joins old and new by copying both, with room for `capacity` tokens instead."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: "torch.Tensor", value_states: "torch.Tensor", *args: object, **kwargs: object
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Writes [rows, heads, tokens, head_dim] behind what is there; all that is there now."""
        if self._room is None:
            rows, heads, _, width = key_states.shape
            self.lazy_initialization(key_states, value_states)
            self._room = tuple(key_states.new_empty(rows, heads, self._capacity, width) for _ in range(2))
            self._show(0)
        past = self.get_seq_length()
        until = past + key_states.shape[-2]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, past:until] = states
        self._show(until)
        return self.keys, self.values

    def cut(self, tokens: int) -> None:
        """Forgets all but the first `tokens` tokens."""
        if self._room is not None:
            self._show(min(tokens, self.get_seq_length()))

    def select(self, rows: "torch.Tensor") -> None:
        """Keeps these rows alone."""
        self._room = tuple(room[rows] for room in self._room)
        self._show(self.get_seq_length())

    def start_from(self, other: "RoomyLayer", rows: int) -> None:
        """Takes what another layer of one row holds, for each of `rows` rows."""
        self.update(*(states.expand(rows, -1, -1, -1) for states in (other.keys, other.values)))

    def _show(self, tokens: int) -> None:
        self.keys, self.values = (room[:, :, :tokens] for room in self._room)


class RoomyCache(Cache):
    """A `RoomyLayer` for every layer of the model."""

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers=[RoomyLayer(capacity) for _ in range(layers)])

    def cut(self, tokens: int) -> None:
        """See `RoomyLayer.cut`."""
        for layer in self.layers:
            layer.cut(tokens)

    def select(self, rows: "torch.Tensor") -> None:
        """See `RoomyLayer.select`."""
        for layer in self.layers:
            layer.select(rows)

    def start_from(self, other: "RoomyCache", rows: int) -> None:
        """See `RoomyLayer.start_from`."""
        for layer, source in zip(self.layers, other.layers, strict=True):
            layer.start_from(source, rows)
