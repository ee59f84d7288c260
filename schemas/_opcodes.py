"""The instructions into which a writer and a reader schema are compiled.

A program is an int64 matrix, one instruction a row: operation, then up to four operands. The
meaning of the operands stands beside each operation; *slot* is a row of the output matrix of that
type, *mark* a row of the validity matrix.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "BLOCKS",
    "BOOLEAN",
    "BYTES",
    "CALL",
    "DOUBLE",
    "END",
    "ENTER",
    "ENUM",
    "FAIL",
    "FIXED",
    "FLOAT",
    "FLOAT_DOUBLE",
    "INT",
    "INT_DOUBLE",
    "INT_FLOAT",
    "INT_LONG",
    "JUMP",
    "LEAVE",
    "LONG",
    "LONG_DOUBLE",
    "LONG_FLOAT",
    "NEXT",
    "NULLABLE",
    "NULL_FIRST",
    "NULL_SECOND",
    "OPERANDS",
    "RETURN",
    "SET_BOOLEAN",
    "SET_DOUBLE",
    "SET_FLOAT",
    "SET_INT",
    "SET_LONG",
    "SET_STRING",
    "SKIP_BOOLEAN",
    "SKIP_BYTES",
    "SKIP_ENUM",
    "SKIP_INT",
    "SKIP_LONG",
    "SKIP_SIZE",
    "SKIP_STRING",
    "STRING",
    "UNION",
]

OPERANDS: Final = 5

END: Final = 0  #             the record ends here
RETURN: Final = 1  #          end of a subroutine
JUMP: Final = 2  #            target
CALL: Final = 3  #            target: skip a named record, one level deeper
FAIL: Final = 4  #            reason
UNION: Final = 5  #           branch count, base of the jump table
BLOCKS: Final = 6  #          target after the items: start of an array or a map
NEXT: Final = 7  #            first instruction of an item, target after the items
ENTER: Final = 8  #           a nested record starts
LEAVE: Final = 9  #           a nested record ends

SKIP_INT: Final = 10
SKIP_LONG: Final = 11
SKIP_SIZE: Final = 12  #      byte count
SKIP_BYTES: Final = 13
SKIP_STRING: Final = 14
SKIP_BOOLEAN: Final = 15
SKIP_ENUM: Final = 16  #      symbol count
NULLABLE: Final = 17  #       target when null, twice the index of null (0 or 2)

BOOLEAN: Final = 20  #        slot, mark
INT: Final = 21  #            slot, mark
INT_LONG: Final = 22  #       slot, mark
LONG: Final = 23  #           slot, mark
INT_FLOAT: Final = 24  #      slot, mark
INT_DOUBLE: Final = 25  #     slot, mark
LONG_FLOAT: Final = 26  #     slot, mark
LONG_DOUBLE: Final = 27  #    slot, mark
FLOAT: Final = 28  #          slot, mark
FLOAT_DOUBLE: Final = 29  #   slot, mark
DOUBLE: Final = 30  #         slot, mark
STRING: Final = 31  #         slot
BYTES: Final = 32  #          slot
FIXED: Final = 33  #          slot, byte count
ENUM: Final = 34  #           slot, mark, symbol count, base of the symbol table

SET_BOOLEAN: Final = 40  #    slot, mark, value
SET_INT: Final = 41  #        slot, mark, value
SET_LONG: Final = 42  #       slot, mark, value
SET_FLOAT: Final = 43  #      slot, mark, bits of the double
SET_DOUBLE: Final = 44  #     slot, mark, bits of the double
SET_STRING: Final = 45  #     slot, offset in the constants, length

NULL_FIRST: Final = 64  #     added to a reading or skipping operation: the value is in a union
NULL_SECOND: Final = 128  #   with null, which is the first or the second branch
