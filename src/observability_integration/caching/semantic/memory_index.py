"""The reference index: exact search in memory, with one matrix of unit vectors for each scope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from observability_integration.checks import check_count
from observability_integration.errors import MissingDependencyError

from .protocol import Candidate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]  # the rows are unit vectors
    Vector = NDArray[np.float32]  # of length 1

_FIRST_ROWS = 16


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise MissingDependencyError("numpy is not installed. Install with: pip install 'numpy>=2'") from error
    if not hasattr(numpy, "vecdot"):
        raise MissingDependencyError("numpy is too old. Install with: pip install 'numpy>=2'")
    return numpy


class _ScopeVectors:
    """The vectors of one scope: rows of a matrix that doubles when full and halves when mostly empty."""

    __slots__ = ("_matrix", "_np", "names", "traces")

    def __init__(self, np: Any, dimension: int) -> None:
        self._np = np
        self._matrix: Matrix = np.empty((_FIRST_ROWS, dimension), dtype=np.float32)
        self.names: list[str] = []
        self.traces: list[tuple[bytes, ...]] = []

    def append(self, name: str, unit: Vector, traces: tuple[bytes, ...]) -> int:
        row = len(self.names)
        if row == len(self._matrix):
            self._resize(2 * row)
        self._matrix[row] = unit
        self.names.append(name)
        self.traces.append(traces)
        return row

    def remove_row(self, row: int) -> str | None:
        """Removes a row by moving the last one into it; returns the name of the moved entry, or None."""
        last = len(self.names) - 1
        name, traces = self.names.pop(), self.traces.pop()
        moved = row != last
        if moved:
            self._matrix[row] = self._matrix[last]
            self.names[row], self.traces[row] = name, traces
        if len(self._matrix) > _FIRST_ROWS and last <= len(self._matrix) // 4:
            self._resize(len(self._matrix) // 2)
        return name if moved else None

    def _resize(self, rows: int) -> None:
        used = len(self.names)
        matrix = self._np.empty((rows, self._matrix.shape[1]), dtype=self._np.float32)
        matrix[:used] = self._matrix[:used]
        self._matrix = matrix

    def nearest(self, unit: Vector) -> Candidate:
        # Not "@", which uses the threads of the linear algebra library: on a busy machine the event loop then waits for
        # them a hundred times as long as the product takes.
        similarities = self._np.vecdot(self._matrix[: len(self.names)], unit)
        row = int(similarities.argmax())
        return Candidate(self.names[row], float(similarities[row]), self.traces[row])


class MemoryIndex:
    """A `SemanticIndex` in this process: exact search with numpy.

    A search is one product of the scope's matrix with the vector, in the thread of the event loop: some tenths of a
    millisecond for 10,000 entries of 384 numbers. These take 15 MB (30 MB while the matrix is half empty), and as much
    again for the traces. A full index evicts its oldest entry: the entries of a cache live equally long, so the oldest
    expires first.

    Args:
        max_entries: entries over all scopes; at least 1.

    Raises:
        ConfigurationError: `max_entries` is not an integer >= 1.
        MissingDependencyError: numpy 2 or newer is not installed.
    """

    def __init__(self, max_entries: int = 10_000) -> None:
        check_count("max_entries", max_entries)
        self._np = _numpy()
        self._max_entries = max_entries
        self._dimension: int | None = None
        self._scopes: dict[str, _ScopeVectors] = {}
        self._places: dict[str, tuple[str, int]] = {}  # name -> scope and row; the first added comes first

    def __len__(self) -> int:
        return len(self._places)

    async def nearest(self, scope: str, vector: Sequence[float]) -> Candidate | None:
        """Returns the nearest entry of the scope, or None.

        Raises:
            ValueError: the vector is not a list of finite numbers, is zero, or has another length than those kept.
        """
        unit = self._unit(vector)
        vectors = self._scopes.get(scope)
        return None if vectors is None else vectors.nearest(unit)

    async def add(self, scope: str, name: str, vector: Sequence[float], traces: tuple[bytes, ...]) -> None:
        """Adds an entry; replaces the one of the same name in any scope.

        Raises:
            ValueError: as `nearest`.
        """
        unit = self._unit(vector)
        self._drop(name)
        while len(self._places) >= self._max_entries:
            self._drop(next(iter(self._places)))
        self._dimension = len(unit)
        vectors = self._scopes.get(scope)
        if vectors is None:
            vectors = self._scopes[scope] = _ScopeVectors(self._np, len(unit))
        self._places[name] = (scope, vectors.append(name, unit, traces))

    async def remove(self, name: str) -> None:
        """Removes an entry, if it exists."""
        self._drop(name)

    async def clear(self, scope: str | None = None) -> None:
        """Removes the entries of a scope, or all entries; an empty index takes vectors of any length."""
        for cleared in list(self._scopes) if scope is None else [scope]:
            vectors = self._scopes.pop(cleared, None)
            for name in () if vectors is None else vectors.names:
                del self._places[name]
        if not self._places:
            self._dimension = None

    def _drop(self, name: str) -> None:
        place = self._places.pop(name, None)
        if place is None:
            return
        scope, row = place
        vectors = self._scopes[scope]
        moved = vectors.remove_row(row)
        if moved is not None:
            self._places[moved] = place
        if not vectors.names:
            del self._scopes[scope]
        if not self._places:
            self._dimension = None

    def _unit(self, vector: Sequence[float]) -> Vector:
        np = self._np
        given = np.asarray(vector, dtype=np.float64)
        if given.ndim != 1 or not given.size:
            raise ValueError("a vector is a list of numbers")
        if self._dimension is not None and len(given) != self._dimension:
            raise ValueError(f"a vector of {len(given)} numbers, where the others have {self._dimension}")
        largest = np.abs(given).max()
        if not 0 < largest < np.inf:  # also false for NaN
            raise ValueError("a vector that is zero, or has numbers that are not finite, has no direction")
        given = given / largest  # before squaring, which could overflow
        unit: Vector = (given / np.sqrt(given @ given)).astype(np.float32)
        return unit
