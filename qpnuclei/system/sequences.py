"""Sequences whose items need not all be in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T_co = TypeVar("T_co", covariant=True)


class MadeOnDemand(Sequence[T_co]):
    """A sequence that makes or reads an item each time it is requested.

    A subclass implements `__len__` and `_item`; a slice gives a list of items.

    Examples
    --------
    >>> class Squares(MadeOnDemand[int]):
    ...     def __len__(self) -> int:
    ...         return 5
    ...     def _item(self, index: int) -> int:
    ...         return index**2
    >>> squares = Squares()
    >>> squares[-1], squares[1:3], list(squares)
    (16, [1, 4], [0, 1, 4, 9, 16])
    """

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> list[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | list[T_co]:
        """Return an item, or a list of them."""
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self._item(i) for i in chosen]
        return self._item(chosen)

    @abstractmethod
    def _item(self, index: int) -> T_co:
        """Return the item at an index from 0 to the length - 1."""
