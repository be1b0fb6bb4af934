"""The state machine of a queue in plain Python: what the Lua scripts promise, without Redis.

Written from the design, not from the scripts, for ``test_stateful.py`` to compare them with. Where
the order of things matters (who is claimed next), it keeps the order that Redis would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, NamedTuple

from streaq.wire import Envelope

State = Literal["queued", "running", "scheduled", "blocked"]
RETURNED = "-"
FAR = 99_999_999_999_999
PAST = 1
NOW = 0
"""As a due time: some moment of the server's clock, later than ``PAST``."""


class Options(NamedTuple):
    tries: int | None = 3
    drift_ms: int | None = None
    unique: bool = False
    keep: int = 300_000

    def __str__(self) -> str:
        tries = "" if self.tries is None else self.tries
        drift = "" if self.drift_ms is None else self.drift_ms
        return f"{tries}|{drift}|{int(self.unique)}|{self.keep}"


FUNCTIONS = {
    "work": Options(),
    "once": Options(tries=1),
    "always": Options(tries=None),
    "sole": Options(tries=2, unique=True),
    "unkept": Options(keep=0),
    "punctual": Options(drift_ms=3_600_000),
}
UNKNOWN = "nobody's"


@dataclass(eq=False)
class Message:
    """A message of a stream. ``owner`` is None until it is delivered."""

    number: int
    task_id: str
    priority: str
    owner: str | None = None
    idle: bool = False
    """For longer than a lease, or handed back."""
    id: bytes = b""
    """Learnt from Redis when it is first seen there."""


@dataclass(eq=False)
class Task:
    envelope: Envelope
    state: State
    due: int
    tries: int = 0
    who: str = ""
    message: Message | None = None
    stop: bool = False
    expired: bool = False
    awaited: bool = False
    input: bytes = b""
    links: list[str] = field(default_factory=list[str])
    trace: str = ""
    """Of the attempt that it had last."""
    was: str = ""
    """Of the attempt before the one that runs."""
    error: bytes = b""
    ledger: list[str] = field(default_factory=list[str])
    waits_for: set[str] = field(default_factory=set[str])

    @property
    def fn(self) -> str:
        return self.envelope.fn

    @property
    def options(self) -> Options | None:
        return FUNCTIONS.get(self.fn)


class Result(NamedTuple):
    status: str
    reason: str
    value: bytes
    tries: int
    worker: str
    trace: str = ""


class By(NamedTuple):
    """The end of a task, as those see it who wait for it."""

    task_id: str
    ok: bool
    value: bytes = b""
    input: bytes = b""
    trace: str = ""


@dataclass(eq=False)
class Schedule:
    envelope: Envelope
    due: int
    fired: bool = False


class Attempt(NamedTuple):
    """A claim, as the worker remembers it."""

    task_id: str
    message: Message
    try_number: int


class Outcome(NamedTuple):
    """What an attempt came to. ``action``: success, failed, aborted, retry now, retry later,
    return."""

    attempt: Attempt
    action: str
    value: bytes
    trace: str


@dataclass
class Exchanged:
    """What an exchange answers."""

    codes: list[int] = field(default_factory=list[int])
    started: list[Attempt] = field(default_factory=list[Attempt])
    refused: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    reserved: list[Message] = field(default_factory=list[Message])
    short: bool = False
    more: bool = False


class Model:
    """A queue whose workers take priorities in this order, highest first."""

    def __init__(self, priorities: Sequence[str]) -> None:
        self.priorities = priorities
        self.tasks: dict[str, Task] = {}
        self.kept: dict[str, Result] = {}
        self.tombstones: dict[str, Result] = {}
        self.ended: dict[str, list[Result]] = {}
        self.done: list[str] = []
        self.dependents: dict[str, dict[str, str]] = {}
        self.locks: dict[str, str] = {}
        self.schedules: dict[str, Schedule] = {}
        self.messages: list[Message] = []
        self.changes: list[tuple[str, str, str]] = []
        self._numbers = count(1)
        self._dropped: set[Message] = set()

    # ------------------------------------------------------------------------ producers

    def publish(self, unit: Sequence[Envelope]) -> list[str]:
        words: list[str] = []
        unkept: dict[str, Result] = {}
        for envelope in unit:
            task_id = envelope.task_id
            buried = envelope.again and task_id in self.tombstones
            if buried or any(task_id in there for there in (self.tasks, self.kept, self.schedules)):
                words.append("exists")
            elif envelope.crontab:
                self.schedules[task_id] = Schedule(envelope, FAR)
                words.append("repeating")
            else:
                words.append(self._place(envelope, unkept))
                if words[-1] == "done":
                    unkept[task_id] = self.ended[task_id][-1]
        return words

    def _place(self, envelope: Envelope, unkept: dict[str, Result]) -> str:
        task_id = envelope.task_id
        due = {"": NOW, str(PAST): PAST, str(FAR): FAR}[envelope.due]
        task = Task(envelope, "queued", due)
        waits: dict[str, str] = {}
        for dep, mode in envelope.dependencies:
            alive = dep in self.tasks
            schedule = self.schedules.get(dep)
            if alive or (schedule is not None and not schedule.fired):
                if mode != "after" or dep not in waits:
                    waits[dep] = mode
                if alive:
                    self.tasks[dep].awaited = True
                continue
            result = unkept.get(dep) or self.kept.get(dep)
            end = self._forced_end(task, mode, result)
            if end is not None:
                self._end(task_id, task, end)
                self._tell(end, task_id, dep)
                return "done"
        self.tasks[task_id] = task
        for dep, mode in waits.items():
            self.dependents.setdefault(dep, {})[task_id] = mode
            task.waits_for.add(dep)
        if waits:
            task.state = "blocked"
        elif due == FAR:
            task.state = "scheduled"
        else:
            self._enqueue(task_id, task, due)
        return task.state

    @staticmethod
    def _forced_end(task: Task, mode: str, result: Result | None) -> Result | None:
        """The end that a finished dependency forces on a task."""
        failed = Result("failed", "dependency", b"", 0, "")
        if result is None:
            return failed
        if result.trace:
            task.links.append(result.trace)
        if result.status == "success":
            if mode == "otherwise":
                return Result("success", "skipped", result.value, 0, "")
            if mode == "then":
                task.input = result.value
            return None
        return None if mode == "otherwise" and not task.envelope.needs else failed

    def abort(self, task_id: str) -> str:
        task = self.tasks.get(task_id)
        if self._end_schedule(task_id) and task is None:
            return "aborted"
        if task is None:
            return "done" if task_id in self.kept else "missing"
        if task.state == "running":
            task.stop = True
            return "asked"
        if task.message is not None:
            self._drop(task.message)
        self._unblock(task_id, task)
        self._finish(task_id, task, Result("aborted", "user", b"", task.tries, ""))
        self._flush()
        return "aborted"

    def unschedule(self, task_id: str) -> bool:
        return self._end_schedule(task_id)

    def _end_schedule(self, task_id: str) -> bool:
        schedule = self.schedules.pop(task_id, None)
        if schedule is not None and not schedule.fired:
            self._keep(task_id, schedule.envelope, Result("aborted", "user", b"", 0, ""))
            self._settle_dependents(By(task_id, ok=False))
        return schedule is not None

    # ------------------------------------------------------------------------- schedulers

    def tick(self, most: int) -> list[str]:
        moved: list[str] = []
        for priority in self.priorities:
            due = sorted(
                (task.due, task_id)
                for task_id, task in self.tasks.items()
                if task.state == "scheduled"
                and task.envelope.priority == priority
                and task.due != FAR
            )
            for at, task_id in due[: most - len(moved)]:
                self._enqueue(task_id, self.tasks[task_id], at)
                moved.append(task_id)
        return moved

    def fire(self, schedule_id: str, due: int, following: int | None, made: str) -> str:
        schedule = self.schedules.get(schedule_id)
        if schedule is None or schedule.due != due:
            return ""
        if not schedule.fired:
            made, schedule.fired = schedule_id, True
        if made not in self.tasks:
            envelope = schedule.envelope._replace(task_id=made, due="", crontab="")
            task = self.tasks[made] = Task(envelope, "queued", due)
            task.awaited = bool(self.dependents.get(made))
            self._enqueue(made, task, due)
        if following is None:
            del self.schedules[schedule_id]
        else:
            schedule.due = following
        return made

    # ---------------------------------------------------------------------------- workers

    def exchange(
        self,
        worker: str,
        outcomes: Sequence[Outcome],
        starts: Sequence[Message],
        want: int,
        reserve: int,
        *,
        reclaim: bool,
        resent: bool = False,
    ) -> Exchanged:
        out = Exchanged()
        codes: dict[int, int] = {}
        ends_first = sorted(
            range(len(outcomes)), key=lambda i: outcomes[i].action.startswith("ret")
        )
        for i in ends_first:
            codes[i] = self._settle(worker, outcomes[i], resent=resent)
        out.codes = [codes[i] for i in range(len(outcomes))]
        for message in starts:
            self._start(worker, message, out, reserved=True)
        out.short = want + reserve > 0
        for priority in self.priorities if want + reserve else ():
            if reclaim:
                found = self._pick(priority, want, delivered=True)
                out.more = out.more or len(found) == want
                want, reserve = self._take(worker, found, want, reserve, out)
            room = want + reserve
            found = self._pick(priority, room, delivered=False)
            out.short = out.short and len(found) != room
            want, reserve = self._take(worker, found, want, reserve, out)
        self._flush()
        return out

    def _pick(self, priority: str, room: int, *, delivered: bool) -> list[Message]:
        found = [
            m
            for m in self.messages
            if m.priority == priority and (m.idle if delivered else m.owner is None)
        ]
        return found[:room]

    def _take(
        self, worker: str, found: Iterable[Message], want: int, reserve: int, out: Exchanged
    ) -> tuple[int, int]:
        found = list(found)
        for message in found:
            message.owner, message.idle = worker, False
        for message in found:
            if want > 0:
                before = len(out.started)
                self._start(worker, message, out)
                want -= len(out.started) - before
            else:
                out.reserved.append(message)
                reserve -= 1
        return want, reserve

    def _start(
        self, worker: str, message: Message, out: Exchanged, *, reserved: bool = False
    ) -> None:
        task = self.tasks.get(message.task_id)
        if task is None or task.message is not message:
            self._drop(message)
            return
        if reserved:
            if task.who:
                return
            message.owner, message.idle = worker, False
        if task.who:
            task.ledger.append("lost")
        why = self._objection(message.task_id, task)
        if why is not None:
            self._refuse(message, task, *why)
            out.refused.append((message.task_id, *why))
            return
        task.state, task.who, task.tries = "running", worker, task.tries + 1
        task.was, task.trace = task.trace, ""
        out.started.append(Attempt(message.task_id, message, task.tries))

    def _objection(self, task_id: str, task: Task) -> tuple[str, str] | None:  # noqa: PLR0911
        options = task.options
        if task.stop:
            return "aborted", "user"
        if task.expired and task.tries == 0:
            return "refused", "expired"
        if options is None:
            return "refused", "unknown"
        if options.tries is not None and task.tries >= options.tries:
            return "refused", "exhausted"
        if options.drift_ms is not None and NOW < task.due < FAR:
            return "refused", "drift"
        if options.unique and self.locks.setdefault(task.fn, task_id) != task_id:
            return "refused", "unique"
        return None

    def _refuse(self, message: Message, task: Task, status: str, reason: str) -> None:
        self._drop(message)
        if task.who:
            self._unlock(task.fn, message.task_id)
        value = task.error if reason == "exhausted" else b""
        status = "failed" if status == "refused" else status
        self._finish(message.task_id, task, Result(status, reason, value, task.tries, ""))

    def _settle(self, worker: str, outcome: Outcome, *, resent: bool) -> int:
        task_id, message, try_number = outcome.attempt
        task = self.tasks.get(task_id)
        if task is None or (task.message, task.tries, task.who) != (message, try_number, worker):
            return 2 if resent and self._settled_before(worker, outcome) else 0
        self._unlock(task.fn, task_id)
        if outcome.action == "return":
            self._hand_back(task, message)
            task.trace = outcome.trace or task.trace
            task.ledger.append("returned")
        elif outcome.action.startswith("retry"):
            task.ledger.append("retried")
            task.error = outcome.value or task.error
            task.trace = outcome.trace
            task.who, task.message = "", None
            self._drop(message)
            if outcome.action == "retry now" or task.stop:
                self._enqueue(task_id, task, NOW)
            else:
                task.state, task.due = "scheduled", FAR
        else:
            self._drop(message)
            result = Result(outcome.action, "why", outcome.value, try_number, worker, outcome.trace)
            self._finish(task_id, task, result)
        return 1

    def _settled_before(self, worker: str, outcome: Outcome) -> bool:
        task_id, message, try_number = outcome.attempt
        task = self.tasks.get(task_id)
        if task is None:
            result = self.kept.get(task_id) or self.tombstones.get(task_id)
            return result is not None and (result.tries, result.worker) == (try_number, worker)
        if task.who:
            return False
        if outcome.action == "return":
            return task.message is message and task.tries == try_number - 1
        retried = outcome.action.startswith("retry")
        return retried and task.message is not message and task.tries == try_number

    def renew(
        self, worker: str, attempts: Iterable[Attempt], reserved: Iterable[Message]
    ) -> tuple[list[tuple[Message, int]], list[str]]:
        """What is lost, and what is to stop."""
        lost: list[tuple[Message, int]] = []
        stop: list[str] = []
        held = [(a.task_id, a.message, a.try_number, worker) for a in attempts]
        held += [(m.task_id, m, 0, "") for m in reserved]
        for task_id, message, try_number, who in held:
            task = self.tasks.get(task_id)
            ours = task is not None and (task.message, task.who) == (message, who)
            ours = ours and (task.tries == try_number if who else message.owner == worker)
            if task is None or not ours:
                lost.append((message, try_number))
                continue
            message.owner, message.idle = worker, False
            if task.stop:
                stop.append(task_id)
        return lost, stop

    def recover(self, worker: str, known: Iterable[Message]) -> int:
        known, handed_back = set(known), 0
        for message in [m for m in self.messages if m.owner == worker and m not in known]:
            task = self.tasks[message.task_id]
            if task.who not in ("", worker):
                continue
            if task.who:
                self._unlock(task.fn, message.task_id)
                self._hand_back(task, message)
            message.owner, message.idle = RETURNED, True
            handed_back += 1
        return handed_back

    def release(self, reserved: Iterable[Message]) -> None:
        for message in reserved:
            task = self.tasks.get(message.task_id)
            if task is not None and task.message is message and not task.who:
                message.owner, message.idle = RETURNED, True

    def silence(self, worker: str) -> None:
        """Its leases run out."""
        for message in self.messages:
            message.idle = message.idle or message.owner == worker

    # ----------------------------------------------------------------- what follows from it

    def _hand_back(self, task: Task, message: Message) -> None:
        task.state, task.who, task.tries = "queued", "", task.tries - 1
        task.trace = task.was
        message.owner, message.idle = RETURNED, True

    def _enqueue(self, task_id: str, task: Task, due: int) -> None:
        task.state, task.due = "queued", due
        task.message = Message(next(self._numbers), task_id, task.envelope.priority)
        self.messages.append(task.message)

    def _drop(self, message: Message) -> None:
        self._dropped.add(message)

    def _flush(self) -> None:
        """Messages are gone at the end of a script, not before."""
        self.messages = [m for m in self.messages if m not in self._dropped]
        self._dropped.clear()

    def _unlock(self, fn: str, task_id: str) -> None:
        options = FUNCTIONS.get(fn)
        if options is not None and options.unique and self.locks.get(fn) == task_id:
            del self.locks[fn]

    def _unblock(self, task_id: str, task: Task) -> None:
        for dep in task.waits_for:
            self.dependents[dep].pop(task_id, None)
        task.waits_for.clear()

    def _end(self, task_id: str, task: Task, result: Result) -> None:
        self.tasks.pop(task_id, None)
        self._keep(task_id, task.envelope, result)

    def _keep(self, task_id: str, envelope: Envelope, result: Result) -> None:
        self.ended.setdefault(task_id, []).append(result)
        if envelope.keep != "0":
            self.kept[task_id] = result
            self.done.append(task_id)
        else:
            self.tombstones[task_id] = result

    def _finish(self, task_id: str, task: Task, result: Result) -> None:
        self._end(task_id, task, result)
        if task.awaited:
            ok = result.status == "success"
            trace = result.trace if result.worker else task.trace
            self._settle_dependents(By(task_id, ok, result.value, task.input, trace))

    def _tell(self, result: Result, task_id: str, by: str) -> None:
        what = "skipped" if result.status == "success" else "failed"
        self.changes.append((what, task_id, by))

    def _settle_dependents(self, root: By) -> None:
        stack = [root]
        while stack:
            by = stack.pop()
            for task_id, mode in self.dependents.pop(by.task_id, {}).items():
                end = self._settle_dependent(task_id, mode, by)
                if end is not None:
                    stack.append(end)

    def _settle_dependent(self, task_id: str, mode: str, by: By) -> By | None:
        task = self.tasks[task_id]
        task.waits_for.discard(by.task_id)
        if by.ok and mode == "otherwise":
            result = Result("success", "skipped", by.value, 0, "")
            self._unblock(task_id, task)
            self._end(task_id, task, result)
            self._tell(result, task_id, by.task_id)
            return By(task_id, ok=True, value=by.value, trace=by.trace)
        given = by.value if by.ok and mode == "then" else b""
        if not by.ok and mode == "otherwise":
            given = by.input
        hungry = mode != "after" and task.envelope.needs and not given
        if hungry or not (by.ok or mode == "otherwise"):
            result = Result("failed", "dependency", b"", 0, "")
            self._unblock(task_id, task)
            self._end(task_id, task, result)
            self._tell(result, task_id, by.task_id)
            return By(task_id, ok=False, trace=by.trace)
        task.input = given or task.input
        if by.trace:
            task.links.append(by.trace)
        if not task.waits_for:
            self._enqueue(task_id, task, NOW)
            self.changes.append(("released", task_id, by.task_id))
        return None
