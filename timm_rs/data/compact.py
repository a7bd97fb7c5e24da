"""Many names, and a number beside each, in a few arrays: processes share them, and none comes to own a copy."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Names of files need not be UTF-8, and those of Windows may have any surrogate.
ENCODING: dict[str, Any] = dict(encoding='utf-8', errors='surrogatepass')


class _Rows(Sequence[Any]):
    """What is made anew each time that it is asked for; otherwise as a list."""

    def row(self, index: int) -> Any:
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        return [self.row(one) for one in chosen] if isinstance(chosen, range) else self.row(chosen)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


class Names(_Rows):
    """Strings without NUL: their UTF-8, (bytes,) uint8, with a NUL after each. All begin with `prefix`."""

    def __init__(self, text: npt.NDArray[np.uint8], prefix: str = ''):
        self.text, self.prefix = text, prefix
        self.ends = np.flatnonzero(text == 0)

    @classmethod
    def of(cls, names: Iterable[str], prefix: str = '') -> 'Names':
        """What `names` are without the `prefix`, in order."""
        return cls(np.frombuffer('\0'.join([*names, '']).encode(**ENCODING), np.uint8), prefix)

    def below(self, prefix: str) -> 'Names':
        """The same names with a `prefix`."""
        names = copy.copy(self)
        names.prefix = prefix
        return names

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, index: int) -> str:
        start = int(self.ends[index - 1]) + 1 if index else 0
        return self.prefix + self.text[start:int(self.ends[index])].tobytes().decode(**ENCODING)

    def __iter__(self) -> Iterator[str]:
        return map(self.prefix.__add__, self.text.tobytes().decode(**ENCODING).split('\0')[:-1])


class Pairs(_Rows):
    """(name, number) of each of `names`, or with `words` (name, word of that number)."""

    def __init__(self, names: Names, numbers: npt.NDArray[Any], words: Sequence[str] = ()):
        self.names, self.numbers, self.words = names, numbers, words

    def __len__(self) -> int:
        return len(self.names)

    def row(self, index: int) -> tuple[str, Any]:
        return self.names[index], self._of(int(self.numbers[index]))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return zip(self.names, map(self._of, map(int, self.numbers)), strict=True)

    def _of(self, number: int) -> Any:
        return self.words[number] if self.words else number
