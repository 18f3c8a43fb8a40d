from typing import Literal, TypeAlias

from numpy import uint8
from numpy.typing import NDArray

Buffer: TypeAlias = bytes | bytearray | memoryview | NDArray[uint8]
Kind: TypeAlias = Literal["bool", "int", "float"]

version: str
compiler: str
cuda: bool

def available_isas() -> list[str]: ...
def active_isa() -> str: ...
def set_active_isa(isa: str) -> None: ...
def encode_tensor(data: Buffer, kind: Kind, itemsize: int, columns: int) -> bytes: ...
def decode_tensor(payload: Buffer, out: bytearray | NDArray[uint8], kind: Kind, itemsize: int) -> None: ...
