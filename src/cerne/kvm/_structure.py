"""The kernel's C types as annotations, of which ctypes structures are made.

A structure's fields are declared once, as annotations in the kernel's order; the annotation says
both what the field is in C and what Python sees.
"""

import ctypes
from typing import Annotated, TypeAlias, TypeVar, get_args

u8: TypeAlias = Annotated[int, ctypes.c_uint8]
u16: TypeAlias = Annotated[int, ctypes.c_uint16]
u32: TypeAlias = Annotated[int, ctypes.c_uint32]
u64: TypeAlias = Annotated[int, ctypes.c_uint64]
s16: TypeAlias = Annotated[int, ctypes.c_int16]
s32: TypeAlias = Annotated[int, ctypes.c_int32]
s64: TypeAlias = Annotated[int, ctypes.c_int64]

U8Array: TypeAlias = ctypes.Array[ctypes.c_uint8]
U16Array: TypeAlias = ctypes.Array[ctypes.c_uint16]
U32Array: TypeAlias = ctypes.Array[ctypes.c_uint32]
U64Array: TypeAlias = ctypes.Array[ctypes.c_uint64]


_Layout = TypeVar("_Layout", bound=ctypes.Structure | ctypes.Union)


def c_layout(cls: type[_Layout]) -> type[_Layout]:
    """Lay out a struct or a union as its class's annotations say, in their order."""
    annotations: dict[str, object] = cls.__annotations__
    cls._fields_ = [(name, _c_type(kind)) for name, kind in annotations.items()]
    return cls


def offset_of(kind: type[ctypes.Structure], field: str) -> int:
    """Where a field begins in a structure, in bytes."""
    offset: int = getattr(kind, field).offset
    return offset


def _c_type(annotation: object) -> type[ctypes.Structure]:
    kind: type[ctypes.Structure] = (get_args(annotation) or (annotation,))[-1]
    return kind
