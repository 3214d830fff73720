"""The language of pickles, interpreted step by step with a short list of what may be called.

`Reader` is given what harmless names mean; every other name becomes a class of `Inert` objects, which remember what they
were given and do nothing. Nothing that a file says is believed: what may be called, filled or changed is looked at
before it is, and no file takes more than `STEPS` steps, so that it can neither crash nor hold up its reader. The files
themselves are opened in `units/encoder/inert.py`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, BinaryIO

import numpy as np

STEPS = (
    2_000_000  # and elements copied: a few seconds, and at worst some 500 MB; a fairseq checkpoint takes some 20 000
)
NAMES = 1000  # classes that a file may name; a fairseq checkpoint names about 30, and each costs a kilobyte
PARTS = 8  # arguments of a call, and parts of a tuple that is a key; _rebuild_tensor_v2 takes 7


class Inert:
    """Stands for an object of a class that is not called: `kind` is its name, `args` and `state` what the pickle gave it.

    Items that the pickle puts into it, as into a subclass of dict or list, are not kept.
    """

    kind = ""
    args: tuple[Any, ...] = ()
    state: Any = None

    def __repr__(self) -> str:
        return f"<{self.kind}, not called>"


def _key(key: Any) -> Any:
    """A dict's key or a set's element, if hashing it is quick: for a tuple of tuples of tuples it may never end."""
    for part in key if type(key) is tuple and len(key) <= PARTS else (key,):
        plain_kind = part is None or isinstance(part, (str, bytes, int, float, Inert, type, np.generic))
        if not plain_kind or (type(part) is int and part.bit_length() > 64):
            raise ValueError(f"it has a key (a {type(part).__name__}) that takes long to look up")
    return key


def _mapping(pairs: Iterable[Any] = ()) -> dict:
    return {_key(key): value for key, value in pairs}


def _set(items: Iterable[Any] = ()) -> set:
    return {_key(item) for item in items}


def _frozenset(items: Iterable[Any] = ()) -> frozenset:
    return frozenset(_set(items))


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, as protocols 0 to 2 write them."""
    if type(text) is not str or type(encoding) is not str or encoding != "latin1":
        raise ValueError("it asks for another encoding than that of bytes")
    return text.encode("latin1")


# Functions of ours throughout: `Reader` calls nothing else.
CONTAINERS: dict[str, Any] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},  # a real one calls its factory, and many in one another overflow C's stack
    "_codecs.encode": _encoded,
    **{f"{module}.set": _set for module in ("builtins", "__builtin__")},
    **{f"{module}.frozenset": _frozenset for module in ("builtins", "__builtin__")},
}


class _Counted(dict):
    """The steps by their code; each look-up is paid for by the reader."""

    def __init__(self, steps: dict[int, Any], reader: Reader) -> None:
        super().__init__(steps)
        self.reader = reader

    def __getitem__(self, code: int) -> Any:
        self.reader.spend(1)
        if code not in self:
            raise ValueError("it is no pickle, or uses a part of the language that no checkpoint needs")
        return super().__getitem__(code)


# The interpreter in Python, not the one in C: it lets us look at every step, and aside where a file is more than a pickle.
class Reader(pickle._Unpickler):  # type: ignore[misc, name-defined]
    """Reads one pickle from where `file` stands.

    harmless: what a name ("module.name") means: a function of ours, or a value that cannot be called.

    Raises (`load`): whatever a damaged or hostile pickle leads to, always an Exception.
    """

    stack: list[Any]
    memo: dict[int, Any]
    pop_mark: Callable[[], list[Any]]
    readline: Callable[[], bytes]
    dispatch: dict[int, Any] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined, assignment]
    # Names registered in this process; a buffer that is cleared before its bytes are known to be there; others' buffers.
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        del dispatch[_code[0]]

    def __init__(self, file: BinaryIO, harmless: dict[str, Any], encoding: str = "ASCII") -> None:
        super().__init__(file, encoding=encoding)
        self.file, self.harmless, self.left = file, harmless, STEPS
        self.named: dict[str, Any] = {}
        self.dispatch = _Counted(self.dispatch, self)

    def load(self) -> Any:
        try:
            return super().load()
        finally:  # `_Counted` knows us: what was read would stay in memory until garbage is collected
            self.dispatch, self.memo = {}, {}

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise ValueError(f"it takes more than {STEPS} steps")

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self.named:
            if len(self.named) == NAMES:
                raise ValueError(f"it names more than {NAMES} classes")
            inert = type(name.rsplit(".", 1)[-1] or "Inert", (Inert,), {"kind": full})
            self.named[full] = self.harmless.get(full, inert)
        return self.named[full]

    def _instantiate(self, what: Any, args: Any) -> None:
        """Push what a class or function makes of its arguments. (The opcodes INST and OBJ come here by themselves.)"""
        if isinstance(what, type) and issubclass(what, Inert):
            made = what()
            made.args = args if isinstance(args, tuple) else ()  # not what(*args), which would be a copy for each call
        elif isinstance(what, FunctionType) and len(args) <= PARTS:
            first = args[0] if args else None
            if isinstance(first, (list, tuple, dict, set, frozenset)):
                self.spend(len(first))
            elif isinstance(first, str):
                self.spend(len(first) // 64)
            made = what(*args)
        else:
            raise ValueError(f"it calls a {type(what).__name__} with {type(args).__name__}")
        self.stack.append(made)

    def load_reduce(self) -> None:
        args, what = self.stack.pop(), self.stack.pop()
        self._instantiate(what, args)

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # the named arguments
        self.load_reduce()

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Inert):
            made.state = state
        elif type(made) is not dict:  # an OrderedDict's attributes, such as the _metadata of weights, are not kept
            raise ValueError(f"it sets the state of a {type(made).__name__}")

    def _filled(self, kind: type) -> Any:
        """The object on top of the stack, which items come into; something of that kind to throw away if it is inert."""
        target = self.stack[-1]
        if not isinstance(target, Inert) and type(target) is not kind:
            raise ValueError(f"it puts items into a {type(target).__name__}")
        return kind() if isinstance(target, Inert) else target

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._filled(dict).update(_mapping(zip(items[::2], items[1::2])))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._filled(dict)[_key(key)] = value

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append(_mapping(zip(items[::2], items[1::2])))

    def load_append(self) -> None:
        item = self.stack.pop()
        self._filled(list).append(item)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._filled(list).extend(items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        self._filled(set).update(_set(items))

    def load_frozenset(self) -> None:
        self.stack.append(_frozenset(self.pop_mark()))

    def load_put(self) -> None:
        self.memo[int(self.readline()[:20])] = self.stack[-1]  # 20 digits: longer ones are slow to look up

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: lambda self: self.load_build(),
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.PUT[0]: load_put,
    }
