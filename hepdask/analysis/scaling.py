"""How features are scaled for the networks: fitted on the training split, merged from chunk sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.compiled import compiled


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations, minimum and maximum of some columns.

    Attributes
    ----------
    count : int
        Rows seen.
    mean, squares, low, high : float64 (n_features,)
        Of each column; empty sums where nothing was seen.
    """

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.floating]) -> Moments:
        """Take the moments of rows (n, n_features), in float64."""
        return cls.of_columns(np.ascontiguousarray(rows.T))

    @classmethod
    def of_columns(cls, columns: NDArray[np.floating]) -> Moments:
        """Take the moments of columns (n_features, n), in float64."""
        width, n = columns.shape
        if n == 0:
            zero = np.zeros(width)
            return cls(0, zero, zero, np.full(width, np.inf), np.full(width, -np.inf))
        # sums of differences from some value of the column keep their digits where the mean is large
        shift = columns[:, 0].astype(np.float64)
        sums, squares = _sums_of_differences(columns, shift)
        mean = shift + sums / n
        squares = np.maximum(squares - sums**2 / n, 0.0)
        return cls(n, mean, squares, columns.min(axis=1).astype(float), columns.max(axis=1).astype(float))

    def merge(self, other: Moments) -> Moments:
        """Join two samples (Chan, Golub, LeVeque, Am. Stat. 37 (1983) 242: stable for any sizes)."""
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        squares = self.squares + other.squares + delta**2 * (self.count * other.count / count)
        return Moments(
            count, mean, squares, np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        )

    def to_json(self) -> dict[str, Any]:
        """Give plain numbers; floats survive exactly."""
        if self.count == 0:
            return {"count": 0, "width": len(self.mean)}
        return {
            "count": self.count,
            **{name: getattr(self, name).tolist() for name in ("mean", "squares", "low", "high")},
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Moments:
        """Read what `to_json` gave."""
        if plain["count"] == 0:
            return cls.of(np.empty((0, plain["width"])))
        return cls(plain["count"], *(np.array(plain[name]) for name in ("mean", "squares", "low", "high")))


@dataclass(frozen=True)
class Scaler:
    """Scaled value = (value - shift) * factor, float32 (n_features,) each; zero factor for a constant."""

    shift: NDArray[np.float32]
    factor: NDArray[np.float32]

    @classmethod
    def standard(cls, moments: Moments) -> Scaler:
        """Zero mean and unit (population) standard deviation."""
        deviation = np.sqrt(moments.squares / max(moments.count, 1))
        return cls._of(moments.mean, deviation)

    @classmethod
    def min_max(cls, moments: Moments) -> Scaler:
        """Onto [0, 1] over what was seen."""
        return cls._of(moments.low, moments.high - moments.low)

    @classmethod
    def _of(cls, shift: NDArray[np.float64], width: NDArray[np.float64]) -> Scaler:
        factor = np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)
        return cls(shift.astype(np.float32), factor.astype(np.float32))

    def __call__(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Scale values (..., n_features)."""
        return ((values - self.shift) * self.factor).astype(np.float32)

    def to_json(self) -> dict[str, list[float]]:
        """Give plain numbers; floats survive exactly."""
        return {"shift": self.shift.tolist(), "factor": self.factor.tolist()}

    @classmethod
    def from_json(cls, plain: dict[str, list[float]]) -> Scaler:
        """Read what `to_json` gave."""
        return cls(np.array(plain["shift"], np.float32), np.array(plain["factor"], np.float32))


@compiled(fastmath={"reassoc", "contract", "nsz"})
def _sums_of_differences(
    columns: NDArray, shift: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum ``x - shift`` and its square over each column."""
    sums, squares = np.zeros(len(columns)), np.zeros(len(columns))
    for j in range(len(columns)):
        column, from_ = columns[j], shift[j]
        total = square = 0.0
        for i in range(len(column)):
            difference = column[i] - from_
            total += difference
            square += difference * difference
        sums[j], squares[j] = total, square
    return sums, squares
