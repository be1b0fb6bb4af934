"""What the bytes mean: the envelope a task travels in, its result record, and the signature.

Redis sees a task as a few plain fields (function, priority, times, headers) and one opaque value,
the serialised arguments; its result as a line per field and one opaque value. Only the opaque
values pass through the user's serializer, so scripts can end a task without ever reading them.
"""

from __future__ import annotations

import hmac
import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from inspect import isawaitable
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from streaq.types import Deserializer, Serializer, StreaqCancelled, StreaqError

Mode: TypeAlias = Literal["after", "then", "otherwise"]

SIGNATURE_BYTES = 32
VALUE, TUPLE, ERROR = b"v", b"t", b"e"
FOREVER_MS = -1
DEFAULT_KEEP_MS = 300_000
MAX_MEMBERS = 3
"""Of the exceptions in a group, those that are told."""


class Envelope(NamedTuple):
    """One task as the publish script takes it; see ``publish.lua``."""

    task_id: str
    fn: str
    priority: str
    args: bytes
    headers: str = ""
    due: str = ""
    """Empty at once, ``+ms`` from now, or milliseconds since the epoch."""
    expires_in: str = ""
    keep: str = ""
    kind: str = ""
    needs: str = ""
    """``1`` when its arguments are the result of the task before it."""
    crontab: str = ""
    tz: str = ""
    dependencies: tuple[tuple[str, Mode], ...] = ()
    again: str = ""
    """``1`` when it may have been published before, by a call whose answer was lost."""

    def flat(self) -> tuple[str, str, str, bytes, str]:
        """The script's arguments for this task: what is not the default goes as JSON."""
        more = ""
        if any(self[4:]):
            pairs = zip(_MORE, self[4:], strict=True)
            more = json.dumps({k: v for k, v in pairs if v}, separators=(",", ":"))
        return (*self[:4], more)


_MORE = ("head", "due", "till", "keep", "kind", "needs", "tab", "tz", "deps", "again")


class Record(NamedTuple):
    """A result as it is stored and published."""

    status: str
    reason: str
    fn: str
    task_id: str
    created_ms: int
    enqueued_ms: int
    started_ms: int
    finished_ms: int
    tries: int
    worker_id: str
    priority: str
    due_ms: int
    trace: str
    text: str
    ledger: list[dict[str, Any]]
    value: bytes


RECORD_LINES = 16


def make_record(
    status: str,
    reason: str,
    fn: str,
    task_id: str,
    created_ms: int,
    enqueued_ms: str,
    started_ms: int,
    finished_ms: int,
    tries: int,
    worker_id: str,
    priority: str,
    due_ms: int,
    trace: str,
    text: str,
    log: str,
    value: bytes,
) -> bytes:
    """A result record, in the form that ``_finish.lua`` writes too: a line a field, the value
    last. ``log`` is the ledger of earlier attempts as it came from Redis.
    """
    head = (
        f"1\n{status}\n{reason}\n{fn}\n{task_id}\n{created_ms}\n{enqueued_ms}\n{started_ms}\n"
        f"{finished_ms}\n{tries}\n{worker_id}\n{priority}\n{due_ms}\n{trace}\n{text}\n{log}\n"
    )
    return head.encode() + value


def parse_record(raw: bytes) -> Record:
    """Read a result record.

    :raises StreaqError: when these bytes are not one.
    """
    parts = raw.split(b"\n", RECORD_LINES)
    if len(parts) != RECORD_LINES + 1 or parts[0] != b"1":
        raise StreaqError("This result was not written by a streaq this version can read.")
    head = [part.decode("utf-8", "replace") for part in parts[1:RECORD_LINES]]
    status, reason, fn, task_id, made, queued, began, ended, tries, who, pri, due, trace = head[:13]
    try:
        return Record(
            status, reason, fn, task_id, int(made or 0), int(queued or 0), int(began or 0),
            int(ended or 0), int(tries or 0), who, pri, int(float(due or 0)), trace, head[13],
            json.loads(f"[{head[14]}]"), parts[-1],
        )  # fmt: skip
    except ValueError as e:
        raise StreaqError(f"The result of task {task_id} was changed: {one_line(e)}") from e


REFUSALS: Mapping[str, str] = {
    "expired": "The task expired before a worker could start it.",
    "unknown": "No function of this name is registered with the worker: {fn}.",
    "undecodable": "The task could not be read: {text}.",
    "exhausted": "The worker died during every one of its {text} tries.",
    "unique": "Another instance of this unique task was running already: {text}.",
    "drift": "The schedule's firing was {text} ms late, more than max_schedule_drift allows.",
    "dependency": "Dependency failed, not running task: {text}.",
    "error": "{text}",
    "timeout": "{text}",
}

GAVE_UP = "streaq gave up after {tries} of {tries} tries."
"""Noted on the exception of the last try."""


def error_without_value(record: Record) -> StreaqError:
    """The exception of a result whose own one is not stored (it was never run, or aborted)."""
    if record.status == "aborted":
        how = "while running" if record.started_ms else "before it ran"
        return StreaqCancelled(f"The task was aborted {how}.")
    template = REFUSALS.get(record.reason, "{text}")
    return StreaqError(template.format(fn=record.fn, text=record.text or record.reason))


def encode_headers(headers: Mapping[str, str]) -> str:
    """Headers as they travel; empty for none."""
    return json.dumps(headers, separators=(",", ":")) if headers else ""


def decode_headers(raw: bytes) -> dict[str, str]:
    """Headers as a dict. What is not a JSON object of strings is taken as none."""
    return dict(_decode_headers(raw))


@lru_cache(maxsize=128)
def _decode_headers(raw: bytes) -> tuple[tuple[str, str], ...]:
    """Those of a batch are all the same."""
    try:
        found: Any = json.loads(raw) if raw else {}
        pairs: list[tuple[str, Any]] = list(found.items())
    except (ValueError, AttributeError, RecursionError):
        return ()
    return tuple((name, value) for name, value in pairs if isinstance(value, str))


def text_of(error: BaseException) -> str:
    """The message of an exception, whatever its class makes of that."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's class may raise what it likes
        return "(it has no text: its __str__ raised)"


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that a group is of, those of the groups in it too; one that is no group."""
    left = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseExceptionGroup):
            left.extend(reversed(cast("Sequence[BaseException]", one.exceptions)))
        else:
            yield one


def message_of(error: BaseException, text_of: Callable[[BaseException], str] = text_of) -> str:
    """The message of an exception; that of a group, which says only how many there are, with the
    first of them.

    :param text_of: what makes a text of each.
    """
    said = text_of(error)
    first = list(islice(leaves_of(error), MAX_MEMBERS + 1))
    if first[0] is error:
        return said
    members = [_named(one, text_of(one)) for one in first[:MAX_MEMBERS]]
    if len(first) > MAX_MEMBERS:
        members.append("...")
    return f"{said} [{'; '.join(members)}]"


def _named(error: BaseException, said: str) -> str:
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def visible(text: str) -> str:
    r"""A text that steers no terminal: its control characters, but for new lines and tabs, are
    written as ``\x1b``.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def encodable(text: str) -> str:
    """``text`` with half characters, which nothing can send, written as escapes."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def one_line(error: BaseException, limit: int = 500) -> str:
    """An exception as one line of text that can be encoded: its class and message."""
    text = _named(error, message_of(error))
    return encodable(visible(" ".join(text.split()))[:limit])


def _quoting(what: str, cause: Exception) -> StreaqError:
    """An error whose message has the serializer's in it, and so perhaps values."""
    error = StreaqError(f"{what}: {one_line(cause)}")
    error.brief = f"{what}: {type(cause).__name__}"
    return error


class Codec:
    """The user's serializer with a signature and a size limit around it.

    :param serializer: value to bytes (or str), sync or async.
    :param deserializer: bytes to value, sync or async.
    :param secret: when given, values are signed with HMAC-SHA256 and checked before they are read.
    :param max_bytes: the largest serialised value that is let through; None for no limit.
    """

    def __init__(
        self,
        serializer: Serializer,
        deserializer: Deserializer,
        secret: str | None,
        max_bytes: int | None,
    ) -> None:
        self._serializer = serializer
        self._deserializer = deserializer
        self._secret = secret.encode() if secret else None
        self._max_bytes = max_bytes
        # Known to be synchronous: what it returns may be an awaitable only by the user's wish.
        self._reads_later = deserializer is not pickle.loads

    def __repr__(self) -> str:
        return f"Codec(signed={self._secret is not None})"

    async def dumps(self, value: Any, purpose: str) -> bytes:
        """Serialise and sign. ``purpose`` is what the signature is good for.

        :raises StreaqError: when the value cannot be serialised, or is over the limit.
        """
        try:
            out = self._serializer(value)
            if type(out) is not bytes and isawaitable(out):
                out = await out
        except Exception as e:
            raise _quoting(f"Can't serialise {purpose}", e) from e
        raw = out.encode() if isinstance(out, str) else bytes(out)
        if self._max_bytes is not None and len(raw) > self._max_bytes:
            raise StreaqError(
                f"Can't send {purpose}: {len(raw):,} bytes are over the limit of "
                f"{self._max_bytes:,} (Worker(max_payload_bytes=...)); pass a reference instead."
            )
        return raw + self._sign(raw, purpose) if self._secret else raw

    async def loads(self, raw: bytes, purpose: str) -> Any:
        """Check the signature and deserialise.

        :raises StreaqError: when the signature is wrong or the value cannot be read.
        """
        if self._secret:
            raw, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
            if not hmac.compare_digest(signature, self._sign(raw, purpose)):
                raise StreaqError(f"The signature of {purpose} is wrong; it is not read.")
        try:
            value = self._deserializer(raw)
            if self._reads_later and isawaitable(value):
                value = await value
        except Exception as e:
            raise _quoting(f"Can't read {purpose}", e) from e
        return value

    def _sign(self, raw: bytes, purpose: str) -> bytes:
        return hmac.digest(self._secret or b"", purpose.encode() + b"\0" + raw, "sha256")

    async def dump_call(self, fn: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The arguments of a call of ``fn``; the signature binds them to that function."""
        return await self.dumps((args, kwargs), f"the arguments of task {fn}")

    async def load_call(self, fn: str, raw: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, as they were given."""
        found = await self.loads(raw, f"the arguments of task {fn}")
        try:
            args, kwargs = found
            return tuple(args), dict(kwargs)
        except (TypeError, ValueError) as e:
            raise StreaqError(f"The arguments of task {fn} are not (args, kwargs).") from e

    async def dump_value(self, value: Any) -> bytes:
        """A return value, marked when it is a tuple (a pipeline unpacks those)."""
        mark = TUPLE if isinstance(value, tuple) else VALUE
        return mark + await self.dumps(value, "a result")

    async def dump_error(self, error: BaseException) -> bytes:
        """An exception; empty when the serializer cannot carry it: its text is stored anyway.

        It is read back here, because many exceptions can be pickled and not unpickled, which
        would be found out only by whoever waits for the result.
        """
        try:
            raw = await self.dumps(error, "a result")
            await self.loads(raw, "a result")
        except StreaqError:
            return b""
        return ERROR + raw

    async def load_value(self, raw: bytes) -> Any:
        """What ``dump_value`` or ``dump_error`` wrote."""
        return await self.loads(raw[1:], "a result")

    async def load_input(self, raw: bytes) -> tuple[Any, ...]:
        """The result of the task before, as the positional arguments of the next."""
        value = await self.load_value(raw)
        if raw[:1] == TUPLE:
            return tuple(value)
        return (value,)
