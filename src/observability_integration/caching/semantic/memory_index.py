"""The reference index: exact search in memory, one matrix of unit vectors a scope."""

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


class _Shelf:
    """The vectors of one scope: rows of a matrix that doubles when full and halves when mostly empty."""

    __slots__ = ("_matrix", "_np", "names", "traces")

    def __init__(self, np: Any, dimension: int) -> None:
        self._np = np
        self._matrix: Matrix = np.empty((_FIRST_ROWS, dimension), dtype=np.float32)
        self.names: list[str] = []
        self.traces: list[tuple[bytes, ...]] = []

    def put(self, name: str, unit: Vector, traces: tuple[bytes, ...]) -> int:
        row = len(self.names)
        if row == len(self._matrix):
            self._resize(2 * row)
        self._matrix[row] = unit
        self.names.append(name)
        self.traces.append(traces)
        return row

    def take(self, row: int) -> str | None:
        """Empties a row; returns the name of the entry that was moved into it, if one was."""
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
        # Not "@": it spreads over the threads of the linear algebra library, and the event loop then waits for
        # all of them, on a busy machine a hundred times as long as the product takes.
        similarities = self._np.vecdot(self._matrix[: len(self.names)], unit)
        row = int(similarities.argmax())
        return Candidate(self.names[row], float(similarities[row]), self.traces[row])


class MemoryIndex:
    """A `SemanticIndex` in this process, by exact search with numpy.

    A search is one product of the scope's matrix with the vector, in the event loop's thread: some tenths of a
    millisecond for 10,000 entries of 384 numbers, which take 15 MB (30 MB while the matrix is half empty) and as much
    again for what the gates keep. When it is full, the entry that was added first goes: entries of a cache live equally
    long, so that is the one that expires first.

    Args:
        max_entries: entries kept, over all scopes; at least 1.

    Raises:
        ConfigurationError: `max_entries` is not an integer >= 1.
        MissingDependencyError: numpy 2 or newer is not installed.
    """

    def __init__(self, max_entries: int = 10_000) -> None:
        check_count("max_entries", max_entries)
        self._np = _numpy()
        self._max_entries = max_entries
        self._dimension: int | None = None
        self._shelves: dict[str, _Shelf] = {}
        self._places: dict[str, tuple[str, int]] = {}  # name -> scope and row; the first added comes first

    def __len__(self) -> int:
        return len(self._places)

    async def nearest(self, scope: str, vector: Sequence[float]) -> Candidate | None:
        """The nearest entry of the scope.

        Raises:
            ValueError: the vector is no list of finite numbers, is zero, or has another length than those kept.
        """
        unit = self._unit(vector)
        shelf = self._shelves.get(scope)
        return None if shelf is None else shelf.nearest(unit)

    async def add(self, scope: str, name: str, vector: Sequence[float], traces: tuple[bytes, ...]) -> None:
        """Keeps an entry, in place of one of the same name in whatever scope.

        Raises:
            ValueError: as `nearest`.
        """
        unit = self._unit(vector)
        self._drop(name)
        while len(self._places) >= self._max_entries:
            self._drop(next(iter(self._places)))
        self._dimension = len(unit)
        shelf = self._shelves.get(scope)
        if shelf is None:
            shelf = self._shelves[scope] = _Shelf(self._np, len(unit))
        self._places[name] = (scope, shelf.put(name, unit, traces))

    async def remove(self, name: str) -> None:
        """Forgets an entry, if it is there."""
        self._drop(name)

    async def clear(self, scope: str | None = None) -> None:
        """Forgets the entries of a scope, or of all; an empty index takes vectors of any length."""
        for left in list(self._shelves) if scope is None else [scope]:
            shelf = self._shelves.pop(left, None)
            for name in () if shelf is None else shelf.names:
                del self._places[name]
        if not self._places:
            self._dimension = None

    def _drop(self, name: str) -> None:
        place = self._places.pop(name, None)
        if place is None:
            return
        scope, row = place
        shelf = self._shelves[scope]
        moved = shelf.take(row)
        if moved is not None:
            self._places[moved] = place
        if not shelf.names:
            del self._shelves[scope]
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
