"""How each model variant is named and drawn, the same in every plot and table."""

from dataclasses import dataclass
from typing import Literal

from eval.config import Variant

LineStyle = Literal["-", "--", ":"]


@dataclass(frozen=True)
class Look:
    """Name and line of a variant. Colours are Okabe and Ito's, their yellow darkened, with two greys and Tol's indigo:
    colour-blind readers can tell them apart."""

    label: str
    color: str
    marker: str
    width: float = 1.6
    line: LineStyle = "-"


LOOKS: dict[Variant, Look] = {
    "rope": Look("RoPE", "#4d4d4d", "s"),
    "pi": Look("PI", "#e69f00", "v"),
    "ntk": Look("NTK", "#009e73", "^"),
    "dynamic_ntk": Look("Dynamic NTK", "#332288", "<", line=":"),
    "yarn": Look("YaRN", "#0072b2", "D"),
    "longrope2": Look("LongRoPE2", "#b8a900", "p"),
    "crop": Look("Crop", "#999999", "x", line=":"),
    "control": Look("Control", "#56b4e9", "P", line="--"),
    "drope": Look("DroPE", "#d55e00", "o", width=3.2),
    "drope_scaled": Look("DroPE scaled", "#cc79a7", "X", width=2.4, line="--"),
}
_EXPLAINED = {
    "pi": "PI: position interpolation.",
    "ntk": "NTK: NTK-aware base.",
    "dynamic_ntk": "Dynamic NTK: NTK's base by the length that is read.",
    "longrope2": "LongRoPE2: a rescale factor for every pair of dimensions.",
    "crop": "Crop: RoPE, shown no more than the last tokens that fit its training length.",
    "control": "Control: RoPE kept and trained on the same rows as DroPE.",
    "drope_scaled": "DroPE scaled: softmax scale 1 + c ln s at s times the context, c = {c:g}.",
}


def in_order(variants: tuple[Variant, ...]) -> list[Variant]:
    """`variants` in the order of plots and tables: rivals first, DroPE last."""
    return [variant for variant in LOOKS if variant in variants]


def explain(variants: tuple[Variant, ...], softmax_scale_c: float) -> list[str]:
    """A sentence for every variant whose name does not say it all."""
    return [_EXPLAINED[name].format(c=softmax_scale_c) for name in in_order(variants) if name in _EXPLAINED]
