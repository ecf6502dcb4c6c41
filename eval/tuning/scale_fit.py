"""Arithmetic of the softmax scale: the best beta of a curve, c in beta = 1 + c ln s, and how sure they are."""

from collections.abc import Callable, Sequence

import numpy as np

GRID = (0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
"""Betas that are tried first: the search then stays between the neighbours of the best one."""
_REFINED = 8
EVALUATIONS = len(GRID) + _REFINED
"""The most losses that `minimised` takes."""
_TOLERANCE = 5e-3
_APART = 0.05


def minimised(loss: Callable[[float], float]) -> float:
    """The beta of least loss among GRID and what scipy's bounded Brent search tries between the best one's neighbours.

    loss: of a beta; it is called once for each. Source: scipy.optimize.minimize_scalar, method "bounded".
    """
    from scipy.optimize import minimize_scalar

    tried: dict[float, float] = {}

    def try_beta(beta: float) -> float:
        tried[float(beta)] = loss(float(beta))
        return tried[float(beta)]

    for beta in GRID:
        try_beta(beta)
    best = min(range(len(GRID)), key=lambda index: tried[GRID[index]])
    bounds = GRID[max(0, best - 1)], GRID[min(len(GRID) - 1, best + 1)]
    minimize_scalar(try_beta, bounds=bounds, method="bounded", options={"xatol": _TOLERANCE, "maxiter": _REFINED})
    return min(tried, key=tried.__getitem__)


def at_an_end(beta: float) -> bool:
    """Whether `beta` is as good as an end of the searched interval, beyond which the minimum may lie."""
    return beta < GRID[0] + 2 * _TOLERANCE or beta > GRID[-1] - 2 * _TOLERANCE


def fitted_c(factors: Sequence[float], betas: np.ndarray) -> np.ndarray:
    """c of the least-squares line beta = 1 + c ln s through (s = 1, beta = 1): sum x (beta - 1) / sum x^2, x = ln s.

    betas: [..., lengths]; returns [...].
    """
    x = np.log(factors)
    return (np.asarray(betas) - 1) @ x / (x @ x)


def residual_error(factors: Sequence[float], betas: Sequence[float]) -> float | None:
    """Standard error of c from the residuals, one fitted number: sqrt(sum r^2 / (m - 1) / sum x^2); None for m = 1."""
    if len(factors) < 2:
        return None
    x = np.log(factors)
    residuals = np.asarray(betas) - 1 - float(fitted_c(factors, np.asarray(betas))) * x
    return float(np.sqrt(residuals @ residuals / (len(x) - 1) / (x @ x)))


def bootstrap_betas(
    betas: Sequence[float], losses: np.ndarray, counts: np.ndarray, draws: int, seed: Sequence[int]
) -> np.ndarray | None:
    """The best beta of `draws` sets of rows drawn with replacement, [draws]; None for fewer than two rows.

    betas: [m], rising. losses: [m, n], mean loss of each row at each. counts: [n] counted tokens of a row. Each draw's
    minimum is that of a parabola in ln beta through its best beta and the two beside it.
    """
    rows = losses.shape[1]
    if rows < 2:
        return None
    picked = np.random.default_rng(list(seed)).multinomial(rows, np.full(rows, 1 / rows), size=draws)
    weights = picked * counts
    curves = weights @ losses.T / weights.sum(axis=1, keepdims=True)
    return np.exp([_lowest(np.log(betas), curve) for curve in curves])


def _lowest(x: np.ndarray, y: np.ndarray) -> float:
    """Where the parabola through the least of y and its neighbours is least; at an end, that end."""
    middle = int(np.argmin(y))
    if middle in (0, len(y) - 1):
        return float(x[middle])
    left, right = x[middle - 1] - x[middle], x[middle + 1] - x[middle]
    rise_left, rise_right = y[middle - 1] - y[middle], y[middle + 1] - y[middle]
    bend = rise_left * right - rise_right * left
    return float(x[middle] + (rise_left * right**2 - rise_right * left**2) / (2 * bend)) if bend else float(x[middle])


def knots(best: float) -> list[float]:
    """GRID and the best beta, rising; what lies closer together would make parabolas of rounding errors."""
    return sorted([*(beta for beta in GRID if abs(np.log(beta / best)) > _APART), best])
