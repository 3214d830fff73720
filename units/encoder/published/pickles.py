"""Read pickles without trusting them: pickle's interpreter with an allow list and limits.

A pickle is a program: it names classes and functions, and has them called. Here a name on the allow list stands for a
function of ours; every other name stands for a class of `Inert` objects, which keep their state and do nothing. So the
weights in a checkpoint can be read, without the libraries of its other objects and without running any code of theirs.
docs/decisions/pickles.md gives the reasons for each limit, and for an interpreter in Python rather than in C.
The files themselves are opened in `units/encoder/published/checkpoint_files.py`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

STEPS = 2_000_000  # opcodes, and elements that calls copy: a few seconds; a fairseq checkpoint takes some 20,000
NAMES = 1000  # classes that a file may name; a fairseq checkpoint names about 30, and each costs a kilobyte
PARTS = 4096  # of a tuple with those of the tuples in it: they are hashed as keys; the state of Python's random has 628
DEPTH, SETTINGS = 64, 100_000  # of what `plain` unfolds; fairseq's settings are 5 deep and have some hundred


class Inert:
    """Stands for an object of a class that is not on the allow list.

    kind: the name of the class. state: what the pickle sets it to. Arguments and items are not kept.
    """

    kind = ""
    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return object.__new__(cls)

    def __repr__(self) -> str:
        return f"<{self.kind}, not called>"

    def _ignore(self, *_: Any) -> None:
        """Items are not kept."""

    __setitem__ = append = extend = add = _ignore


def _items(value: Any = ()) -> Any:
    if type(value) not in (list, tuple):
        raise ValueError(f"it makes a container of a {type(value).__name__}")
    return value


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, as protocols 0 to 2 write them."""
    if type(text) is not str or type(encoding) is not str or encoding != "latin1":
        raise ValueError("it asks for an encoding other than that of bytes")
    return text.encode("latin1")


def _set(*args: Any) -> set:
    return set(_items(*args))


def _frozenset(*args: Any) -> frozenset:
    return frozenset(_items(*args))


CONTAINERS: dict[str, Any] = {
    "collections.OrderedDict": lambda *args: dict(_items(*args)),
    "collections.defaultdict": lambda *_: {},  # a real one would call its factory
    "_codecs.encode": _encoded,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "builtins.frozenset": _frozenset,
    "__builtin__.frozenset": _frozenset,
}
FILLS = {pickle.APPEND: list, pickle.APPENDS: list, pickle.SETITEM: dict, pickle.SETITEMS: dict, pickle.ADDITEMS: set}
CALLS = {pickle.REDUCE: -1, pickle.NEWOBJ: -1, pickle.NEWOBJ_EX: -2}  # where the arguments lie on the stack
MAKES = {  # what may be slow to hash or to compare
    pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET, pickle.REDUCE,
    pickle.INT, pickle.LONG, pickle.LONG4,
}  # fmt: skip
# No checkpoint needs these: names registered in this process, buffers outside the file, memory allocated before its
# bytes are read, and the opcodes of protocol 0 for the memo and for instances
UNUSED = {
    pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.BYTEARRAY8,
    pickle.PUT, pickle.INST, pickle.OBJ,
}  # fmt: skip


def _refuse(_: Any) -> None:
    raise ValueError("it is no pickle, or has an opcode that no checkpoint needs")


def _guarded(opcode: bytes, step: Callable[[Any], None]) -> Callable[[Any], None]:
    def run(unpickler: SafeUnpickler) -> None:
        unpickler.check(opcode)
        step(unpickler)
        if opcode in MAKES:
            unpickler.measure(unpickler.stack[-1])

    return run


class SafeUnpickler(pickle._Unpickler):  # type: ignore[misc, name-defined]
    """pickle's interpreter in Python; the operands of each opcode are checked before it runs.

    Raises (`load`): an Exception of any class, for a damaged or hostile pickle.
    """

    stack: list[Any]
    metastack: list[list[Any]]

    def __init__(self, file: Any, allowed: dict[str, Any], encoding: str = "ASCII") -> None:
        """Read from where `file` stands.

        Args:
            file: allocates no more than it holds, however much it is asked for, as BytesIO and mmap do.
            allowed: what a name ("module.name") stands for: a function, or a value that cannot be called.
        """
        super().__init__(file, encoding=encoding)
        self.file, self.allowed, self.steps = file, allowed, STEPS
        self.named: dict[str, Any] = {}
        self.sizes: dict[int, int] = {}  # of tuples and frozensets, by id; an id that is used again is measured again

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self.named:
            if len(self.named) == NAMES:
                raise ValueError(f"it names more than {NAMES} classes")
            inert = type(name.rsplit(".", 1)[-1] or "Inert", (Inert,), {"kind": full})
            self.named[full] = self.allowed.get(full, inert)
        return self.named[full]

    def check(self, opcode: bytes) -> None:
        """Count the step; let it fill containers only, and call with tuples only."""
        self.steps -= 1
        if opcode in FILLS:
            below = {pickle.APPEND: 2, pickle.SETITEM: 3}.get(opcode)  # the others take all items since the last mark
            target = self.stack[-below] if below else self.metastack[-1][-1]
            if type(target) is not FILLS[opcode] and not isinstance(target, Inert):
                raise ValueError(f"it puts items into a {type(target).__name__}")
        if opcode in CALLS:
            args = self.stack[CALLS[opcode]]
            if type(args) is not tuple:
                raise ValueError(f"it calls something with a {type(args).__name__}")
            operands = (*args, self.stack[-1])  # the last: NEWOBJ_EX's named arguments, or the arguments themselves
            copied = [one for one in operands if isinstance(one, (list, tuple, dict, set, frozenset, str))]
            self.steps -= sum(len(one) // 64 if isinstance(one, str) else len(one) for one in copied)
        if self.steps < 0:
            raise ValueError(f"it takes more than {STEPS} steps")

    def measure(self, made: Any) -> None:
        """Refuse a tuple that holds itself twice, and so on: it would take for ever to hash."""
        size = made.bit_length() // 64 if type(made) is int else 0
        if type(made) in (tuple, frozenset):
            parts = (self.sizes.get(id(part), 1) if type(part) in (tuple, frozenset) else 1 for part in made)
            size = self.sizes[id(made)] = 1 + sum(parts)
        if size > PARTS:
            raise ValueError(f"it holds a {type(made).__name__} of more than {PARTS} parts")

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack.pop()
        self.stack.append(self.built(made, state))

    def built(self, made: Any, state: Any) -> Any:
        """Give an object its state and return what takes its place.

        Attributes of an OrderedDict, such as the `_metadata` of a model's weights, are not kept.
        """
        if isinstance(made, Inert):
            made.state = state
        elif type(made) is not dict:
            raise ValueError(f"it sets the state of a {type(made).__name__}")
        return made


_steps: dict[int, Any] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: SafeUnpickler.load_build}  # type: ignore[attr-defined]
SafeUnpickler.dispatch = dict.fromkeys(range(256), _refuse) | {
    code: _guarded(bytes([code]), step) for code, step in _steps.items() if bytes([code]) not in UNUSED
}


def plain(value: Any) -> Any:
    """Settings out of a checkpoint: omegaconf nodes and argparse namespaces become dicts, lists and values.

    What lies deeper than `DEPTH` or beyond the first `SETTINGS` parts becomes None, as in a list that holds itself.
    """
    left = SETTINGS

    def unfolded(value: Any, depth: int) -> Any:
        nonlocal left
        if isinstance(value, Inert):
            state = value.state
            for content in ("_content", "_val"):  # omegaconf's containers, and its values
                if isinstance(state, dict) and content in state:
                    return unfolded(state[content], depth - 1) if depth else None
            empty = isinstance(state, (dict, list, tuple)) and not state
            return None if empty or not depth else unfolded(state, depth - 1)
        if not isinstance(value, (dict, list, tuple)):
            return value
        left -= len(value)
        if left < 0 or not depth:
            return None
        if isinstance(value, dict):
            return {key: unfolded(item, depth - 1) for key, item in value.items()}
        return [unfolded(item, depth - 1) for item in value]

    return unfolded(value, DEPTH)
