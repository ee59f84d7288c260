"""Walk one Avro body by its writer's schema and refuse what must not reach a decoder.

Plain Python, written independently of the numba kernels: the two are held equal by a property test.
"""

from __future__ import annotations

from schemas.model import Node
from schemas.reasons import AvroRecordError, Limits, Reason

__all__ = [
    "walk_record",
]

_INT_LOW, _INT_HIGH = -(2**31), 2**31 - 1


def walk_record(body: bytes, writer: Node, limits: Limits) -> None:
    """Check every byte of a body.

    Raises:
        AvroRecordError: with the first thing that is wrong, and its offset in the body.
    """
    walker = _Walker(body, limits)
    walker.value(writer, 0, outermost=True)
    if walker.position != len(body):
        left = len(body) - walker.position
        walker.refuse(Reason.TRAILING_BYTES, f"{left} bytes left")


class _Walker:
    def __init__(self, body: bytes, limits: Limits) -> None:
        self.body = body
        self.position = 0
        self._limits = limits
        self._items_left = limits.max_items

    def refuse(self, reason: Reason, detail: str) -> None:
        raise AvroRecordError(reason, f"{detail} at byte {self.position} of {len(self.body)}")

    def varint(self) -> int:
        raw = shift = 0
        while True:
            if self.position >= len(self.body):
                self.refuse(Reason.TRUNCATED, "the bytes end within an integer")
            byte = self.body[self.position]
            self.position += 1
            if shift == 63 and byte > 1:
                self.refuse(Reason.BAD_VARINT, "an integer exceeds 64 bits")
            raw |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (raw >> 1) ^ -(raw & 1)
            shift += 7

    def take(self, size: int) -> bytes:
        if size > len(self.body) - self.position:
            self.refuse(Reason.TRUNCATED, f"{size} bytes expected")
        self.position += size
        return self.body[self.position - size : self.position]

    def sized(self) -> bytes:
        size = self.varint()
        if size < 0:
            self.refuse(Reason.BAD_LENGTH, f"length {size}")
        if size > self._limits.max_string_bytes:
            self.refuse(Reason.STRING_TOO_LONG, f"{size} bytes")
        return self.take(size)

    def text(self) -> None:
        try:
            self.sized().decode("utf-8")
        except UnicodeDecodeError as e:
            detail = f"{e.reason} at byte {self.position} of {len(self.body)}"
            raise AvroRecordError(Reason.INVALID_UTF8, detail) from e

    def value(self, node: Node, depth: int, *, outermost: bool = False) -> None:
        kind = node.kind
        if kind == "null":
            return
        if kind == "string":
            self.text()
        elif kind in ("int", "long"):
            number = self.varint()
            if kind == "int" and not _INT_LOW <= number <= _INT_HIGH:
                self.refuse(Reason.BAD_VARINT, f"{number} exceeds 32 bits")
        elif kind == "bytes":
            self.sized()
        elif kind in ("float", "double", "fixed"):
            self.take({"float": 4, "double": 8}.get(kind, node.size))
        elif kind == "boolean":
            if self.take(1)[0] > 1:
                self.refuse(Reason.BAD_BOOLEAN, "a boolean is neither 0 nor 1")
        elif kind == "enum":
            index = self.varint()
            if not 0 <= index < len(node.symbols):
                self.refuse(Reason.BAD_ENUM_INDEX, f"symbol {index} of {len(node.symbols)}")
        elif kind == "union":
            index = self.varint()
            if not 0 <= index < len(node.branches):
                self.refuse(Reason.BAD_UNION_BRANCH, f"branch {index} of {len(node.branches)}")
            self.value(node.branches[index], depth, outermost=outermost)
        else:
            self._nested(node, depth, outermost=outermost)

    def _nested(self, node: Node, depth: int, *, outermost: bool) -> None:
        if not outermost:
            if depth >= self._limits.max_nesting:
                self.refuse(Reason.NESTING, f"more than {self._limits.max_nesting} levels")
            depth += 1
        if node.kind == "record":
            for field in node.fields:
                self.value(field.type, depth)
            return
        while True:
            count, block_end = self._block()
            if count == 0:
                return
            for _ in range(count):
                if node.kind == "map":
                    self.text()
                self.value(node.item, depth)
            if block_end is not None and self.position != block_end:
                self.refuse(Reason.BAD_LENGTH, "a block of items does not have the size it states")

    def _block(self) -> tuple[int, int | None]:
        count = self.varint()
        block_end = None
        if count < 0:
            size = self.varint()
            if count == -(2**63) or size < 0:
                self.refuse(Reason.BAD_LENGTH, f"a block of {-count} items in {size} bytes")
            if size > len(self.body) - self.position:
                self.refuse(Reason.TRUNCATED, f"a block of {size} bytes expected")
            count = -count
            block_end = self.position + size
        if count > self._items_left:
            self.refuse(Reason.TOO_MANY_ITEMS, f"{count} items")
        self._items_left -= count
        return count, block_end
