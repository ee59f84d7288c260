"""Call librdkafka from compiled code: the way to publish a million records with headers.

confluent-kafka's `produce` costs about 5 us a record with a header, most of it in making and taking
apart Python objects, and its `produce_batch` takes no headers. The wheel carries librdkafka as a
shared library; this module opens that same library and calls `rd_kafka_produceva` (librdkafka 1.5
and later; its ABI is kept by the project) for every row of a batch in one numba kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import confluent_kafka
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from schemas.columns import StringColumn
from schemas.errors import ConfigurationError

__all__ = ["QUEUE_FULL", "Librdkafka", "find_library"]

QUEUE_FULL: Final = -184
"""`RD_KAFKA_RESP_ERR__QUEUE_FULL`: wait and go on."""

_PRODUCER: Final = 0
_ERROR_BYTES: Final = 512
# rd_kafka_vu_t: an int (padded to 8 bytes) and a union of 64 bytes, here as nine 64-bit words.
_WORDS: Final = 9
_ARGUMENTS: Final = 6

_REPORT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


def find_library() -> Path | None:
    """Return the library in confluent-kafka's wheel, or None where it was built otherwise."""
    site = Path(confluent_kafka.__file__).resolve().parent.parent
    for folder, pattern in (
        ("confluent_kafka.libs", "librdkafka*.so*"),
        ("confluent_kafka/.dylibs", "librdkafka*.dylib"),
    ):
        found = sorted((site / folder).glob(pattern))
        if found:
            return found[0]
    return None


class Librdkafka:
    """One producer handle.

    Errors of delivery are counted in `failed`, the code of the first kept in `first_error`; both
    change only inside `poll` and `flush`.

    Args:
        library: path of the shared library.
        configuration: librdkafka settings; `delivery.report.only.error` is added.

    Raises:
        ConfigurationError: when librdkafka refuses a setting.
    """

    def __init__(self, library: Path, configuration: Mapping[str, object]) -> None:
        self.failed = 0
        self.first_error = 0
        self._lib = _open(library)
        self._report = _REPORT(self._on_report)
        self._topics: dict[str, int] = {}
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        conf = self._lib.rd_kafka_conf_new()
        for name, value in {**configuration, "delivery.report.only.error": True}.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            if self._lib.rd_kafka_conf_set(conf, name.encode(), text.encode(), error, _ERROR_BYTES):
                self._lib.rd_kafka_conf_destroy(conf)
                msg = f"configuring librdkafka: {name!r}: {error.value.decode(errors='replace')}"
                raise ConfigurationError(msg)
        self._lib.rd_kafka_conf_set_dr_msg_cb(conf, self._report)
        handle = self._lib.rd_kafka_new(_PRODUCER, conf, error, _ERROR_BYTES)
        if not handle:
            self._lib.rd_kafka_conf_destroy(conf)
            msg = f"starting librdkafka: {error.value.decode(errors='replace')}"
            raise ConfigurationError(msg)
        self._handle: int | None = handle
        address = ctypes.cast(self._lib.rd_kafka_produceva, ctypes.c_void_p).value
        self._produce_address = int(address or 0)
        self._warm()

    def produce(
        self,
        topic: str,
        keys: StringColumn,
        values: StringColumn,
        header_name: bytes,
        headers: NDArray[np.int64],
        timestamps_ms: NDArray[np.int64] | None,
        start: int,
    ) -> tuple[int, int]:
        """Hand over rows from `start` on, until one is refused.

        Keys choose partitions as configured; the header is 8 bytes little-endian; timestamps are
        the time of each call if there are none. librdkafka copies everything before this returns.

        Returns:
            The row that was refused (or the number of rows) and librdkafka's error code (or 0).
        """
        name = np.frombuffer(header_name + b"\0", np.uint8)
        stamps = np.ascontiguousarray(headers, "<i8")
        # librdkafka takes 0 for now.
        if timestamps_ms is None:
            timestamps_ms = np.zeros(len(values), np.int64)
        arguments = np.zeros(_WORDS * _ARGUMENTS, np.int64)
        row, error = _produce(
            self._produce_address,
            int(self._handle or 0),
            self._topic(topic),
            arguments,
            arguments.ctypes.data,
            keys.data.ctypes.data,
            keys.starts,
            keys.lengths,
            values.data.ctypes.data,
            values.starts,
            values.lengths,
            name.ctypes.data,
            stamps.ctypes.data,
            np.ascontiguousarray(timestamps_ms, np.int64),
            start,
        )
        if not error:
            return int(row), 0
        code = int(self._lib.rd_kafka_error_code(error))
        self._lib.rd_kafka_error_destroy(error)
        return int(row), code

    def poll(self, milliseconds: int) -> None:
        """Serve delivery reports."""
        self._lib.rd_kafka_poll(self._handle, milliseconds)

    def flush(self, milliseconds: int) -> int:
        """Send what is queued, wait at most so long, and return how many records still wait."""
        self._lib.rd_kafka_flush(self._handle, milliseconds)
        return int(self._lib.rd_kafka_outq_len(self._handle))

    def explain(self, code: int) -> str:
        """Return librdkafka's words for an error code."""
        return str(self._lib.rd_kafka_err2str(code).decode(errors="replace"))

    def close(self) -> None:
        """Free the handle; what was not flushed is lost."""
        if self._handle is not None:
            for topic in self._topics.values():
                self._lib.rd_kafka_topic_destroy(topic)
            self._lib.rd_kafka_destroy(self._handle)
            self._handle = None

    def _warm(self) -> None:
        # Without rows nothing is called: the kernel is compiled, or loaded from numba's cache.
        none = StringColumn(np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int32))
        words = np.zeros(_WORDS * _ARGUMENTS, np.int64)
        lengths, starts = none.lengths, none.starts
        _produce(0, 0, 0, words, 0, 0, starts, lengths, 0, starts, lengths, 0, 0, starts, 0)

    def _topic(self, name: str) -> int:
        known = self._topics.get(name)
        if known is None:
            known = int(self._lib.rd_kafka_topic_new(self._handle, name.encode(), None))
            self._topics[name] = known
        return known

    def _on_report(self, handle: int, message: int, opaque: int) -> None:
        # The error code is the first field of rd_kafka_message_t.
        code = ctypes.cast(message, ctypes.POINTER(ctypes.c_int)).contents.value
        if code:
            self.failed += 1
            self.first_error = self.first_error or code


def _open(library: Path) -> Any:
    lib = ctypes.CDLL(str(library))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_destroy", None, [pointer]),
        ("rd_kafka_conf_set", number, [pointer, text, text, text, ctypes.c_size_t]),
        ("rd_kafka_conf_set_dr_msg_cb", None, [pointer, _REPORT]),
        ("rd_kafka_new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_topic_new", pointer, [pointer, text, pointer]),
        ("rd_kafka_topic_destroy", None, [pointer]),
        ("rd_kafka_poll", number, [pointer, number]),
        ("rd_kafka_flush", number, [pointer, number]),
        ("rd_kafka_outq_len", number, [pointer]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_error_code", number, [pointer]),
        ("rd_kafka_error_destroy", None, [pointer]),
        ("rd_kafka_err2str", text, [number]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def _call_signature(
    typing_context: Any, address: Any, handle: Any, arguments: Any, count: Any
) -> Any:
    """Call `rd_kafka_produceva` at an address, which unlike a ctypes object can be cached."""
    signature = types.int64(types.int64, types.int64, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        function_type = ir.FunctionType(word, [word, word, word])
        function = builder.inttoptr(values[0], function_type.as_pointer())
        return builder.call(function, list(values[1:]))

    return signature, generate


_call: Any = intrinsic(_call_signature)


@njit(cache=True, nogil=True)
def _produce(
    function: int,
    handle: int,
    topic: int,
    arguments: NDArray[np.int64],
    arguments_address: int,
    key_data: int,
    key_starts: NDArray[np.int64],
    key_lengths: NDArray[np.int32],
    value_data: int,
    value_starts: NDArray[np.int64],
    value_lengths: NDArray[np.int32],
    header_name: int,
    header_values: int,
    timestamps_ms: NDArray[np.int64],
    start: int,
) -> tuple[int, int]:
    a = arguments
    # rd_kafka_vtype_t: RKT 2, VALUE 4, KEY 5, MSGFLAGS 7 (COPY 2), TIMESTAMP 8, HEADER 9 (name,
    # value, size).
    a[0], a[1] = 2, topic
    a[9], a[10] = 7, 2
    a[18], a[27] = 5, 4
    a[36], a[37], a[39] = 9, header_name, 8
    a[45] = 8
    for row in range(start, len(value_starts)):
        if key_lengths[row] < 0:
            a[19], a[20] = 0, 0
        else:
            a[19], a[20] = key_data + key_starts[row], key_lengths[row]
        if value_lengths[row] < 0:
            a[28], a[29] = 0, 0
        else:
            a[28], a[29] = value_data + value_starts[row], value_lengths[row]
        a[38] = header_values + 8 * row
        a[46] = timestamps_ms[row]
        error = _call(function, handle, arguments_address, 6)
        if error != 0:
            return row, error
    return len(value_starts), 0
