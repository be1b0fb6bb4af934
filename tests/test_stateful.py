"""Random sequences of everything that can happen to tasks, compared after each step with a model in
plain Python: the state of every task, every key of the queue, who holds which message, and the
counts.

Set ``STREAQ_EXPLORE`` to a number of examples for a random search; by default the same examples
are run each time. A failure prints the steps that lead to it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streaq.broker.exchange import Claimed, End, Handover, Reply, Settle, parse_reply
from streaq.broker.inspect import parse_snapshot
from streaq.broker.keys import GROUP, Keys
from streaq.broker.publish import parse_changes
from streaq.broker.scripts import call_sync
from streaq.wire import Envelope, make_record, parse_record
from tests.model import (
    FAR,
    FUNCTIONS,
    PAST,
    UNKNOWN,
    Attempt,
    Exchanged,
    Message,
    Model,
    Outcome,
)
from tests.servers import Server, binaries

pytestmark = pytest.mark.timeout(300)  # twelve thousand steps, each looked at from all sides

EXPLORE = int(os.environ.get("STREAQ_EXPLORE", "0"))
LEASE_MS = 3_600_000
SLOTS = 2
"""What the workers' health records say; what a worker holds beyond that it has prefetched."""
PRIORITIES = ("high", "low")
WORKERS = ("w1", "w2")
FNS = st.sampled_from(
    [*["work"] * 4, "once", "always", *["sole"] * 3, "unkept", "punctual", UNKNOWN]
)
ACTIONS = st.sampled_from(
    ["success", "success", "failed", "aborted", "retry now", "retry later", "return"]
)
MODES = st.sampled_from(["after", "then", "otherwise"])


class Hand:
    """What one worker remembers; some of it is out of date."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.claimed: dict[Attempt, Claimed] = {}
        self.reserved: list[Message] = []
        self.sent: list[Outcome] = []


class Queue(RuleBasedStateMachine):
    """Drives the scripts and the model side by side."""

    server: Server

    @initialize()
    def begin(self) -> None:
        self.client: Any = self.server.client(protocol=2)
        self.client.response_callbacks.clear()
        self.client.execute_command("FLUSHALL")
        self.keys = Keys("q")
        self.model = Model(PRIORITIES)
        self.hands = {worker: Hand() for worker in WORKERS}
        self.made = 0
        self.seen_priorities = set(PRIORITIES)
        self.renewed: set[str] = set()
        self.alive = set(WORKERS)
        self.published: dict[str, Envelope] = {}
        self.heard: dict[str, list[bytes]] = {}
        self.results = self.client.pubsub()
        self.results.psubscribe(f"{self.keys.base}done:*")
        self.listen()
        options = [part for name, o in FUNCTIONS.items() for part in (name, str(o))]
        for worker in WORKERS:
            self.call("register", "d", LEASE_MS, worker, len(PRIORITIES), *PRIORITIES, *options)

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.results.close()
            self.client.close()

    def call(self, name: str, *args: Any) -> Any:
        return call_sync(self.client, self.keys.base, name, args)

    def raw(self, *command: Any) -> Any:
        return self.client.execute_command(*command)

    def new_id(self) -> str:
        self.made += 1
        return f"t{self.made}"

    # ------------------------------------------------------------------------ producers

    def publish(self, *unit: Envelope) -> None:
        flat = [part for envelope in unit for part in envelope.flat()]
        _, words, changes = self.call("publish", len(unit), *flat)
        assert [word.decode() for word in words] == self.model.publish(unit)
        self.compare_changes(changes)
        self.published.update({envelope.task_id: envelope for envelope in unit})
        self.seen_priorities |= {envelope.priority for envelope in unit}

    def envelope(self, data: st.DataObject, **more: Any) -> Envelope:
        fn = data.draw(FNS, "function")
        return Envelope(
            self.new_id(), fn, data.draw(st.sampled_from(PRIORITIES), "priority"), b"args",
            keep="0" if fn == "unkept" else "", **more,
        )  # fmt: skip

    @rule(data=st.data())
    def enqueue(self, data: st.DataObject) -> None:
        due = data.draw(st.sampled_from(["", "", "", str(FAR), str(PAST)]), "due")
        expires = data.draw(st.sampled_from(["", "", str(LEASE_MS)]), "expires in")
        self.publish(self.envelope(data, due=due, expires_in=expires))

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def enqueue_dependent(self, data: st.DataObject) -> None:
        fired = [s for s, schedule in self.model.schedules.items() if schedule.fired]
        known = st.sampled_from([*list(self.published)[-8:], *fired, "never there"])
        dependencies = data.draw(st.lists(st.tuples(known, MODES), min_size=1, max_size=3), "on")
        takes = any(mode == "then" for _, mode in dependencies)
        needs = "1" if takes or data.draw(st.booleans(), "needs its input") else ""
        self.publish(self.envelope(data, dependencies=tuple(dependencies), needs=needs))

    @rule(data=st.data())
    def enqueue_pipeline(self, data: st.DataObject) -> None:
        unit = [self.envelope(data)]
        for mode in data.draw(st.lists(MODES, min_size=1, max_size=4), "links"):
            needs = "1" if mode == "then" or (mode == "otherwise" and unit[-1].needs) else ""
            dependencies = ((unit[-1].task_id, mode),)
            unit.append(self.envelope(data, dependencies=dependencies, needs=needs))
        self.publish(*unit)

    @rule(data=st.data())
    def enqueue_repeating(self, data: st.DataObject) -> None:
        self.publish(self.envelope(data, due=str(FAR), crontab="@hourly", tz="UTC"))

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def publish_again(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(list(self.published)), "id")
        model = self.model
        envelope = self.published[task_id]._replace(again=data.draw(st.sampled_from(["", "1"])))
        known = [
            model.tasks,
            model.kept,
            model.schedules,
            model.tombstones if envelope.again else (),
        ]
        if any(task_id in there for there in known):
            self.publish(envelope)

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        others = [*self.model.schedules, *list(self.published)[-3:], "never there"]
        live = data.draw(st.booleans(), "live") and self.model.tasks
        task_id = data.draw(st.sampled_from(list(live) if live else others), "id")
        word, _, changes = self.call("abort", task_id)
        assert word.decode() == self.model.abort(task_id)
        self.compare_changes(changes)

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def unschedule(self, data: st.DataObject) -> None:
        ids = [*self.model.schedules, *list(self.published)[-2:]]
        task_id = data.draw(st.sampled_from(ids), "id")
        there, changes = self.call("unschedule", task_id)
        assert bool(there) == self.model.unschedule(task_id)
        self.compare_changes(changes)

    # ---------------------------------------------------------------------- time that passes

    @precondition(lambda self: self.waiting_for_time())
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        """For one thing alone, so that it may happen in any order."""
        what, name = data.draw(st.sampled_from(self.waiting_for_time()), "what")
        if what == "delay":
            task = self.model.tasks[name]
            task.due = data.draw(st.integers(1, 3), "due")
            self.raw("HSET", self.keys.task(name), "due", task.due)
            self.raw("ZADD", f"{self.keys.base}due:{task.envelope.priority}", task.due, name)
        elif what == "expiry":
            self.model.tasks[name].expired = True
            self.raw("HSET", self.keys.task(name), "till", 1)
        elif what == "tombstone":
            del self.model.tombstones[name]
            self.raw("DEL", f"{self.keys.base}ended:{name}")
            self.published.pop(name, None)
        elif what == "result":
            del self.model.kept[name]
            self.raw("DEL", self.keys.result(name))
            self.published.pop(name, None)  # a second life under this id is none of ours
        else:
            del self.model.locks[name]
            self.raw("DEL", f"{self.keys.base}lock:{name}")

    def waiting_for_time(self) -> list[tuple[str, str]]:
        model = self.model
        live = model.tasks.items()
        return [
            *(("delay", t) for t, task in live if (task.state, task.due) == ("scheduled", FAR)),
            *(("expiry", t) for t, task in live if task.envelope.expires_in and not task.expired),
            *(("result", t) for t in list(model.kept)[-2:]),
            *(("tombstone", t) for t in list(model.tombstones)[-2:]),
            *(("lock", fn) for fn in model.locks),
        ]

    @precondition(lambda self: self.model.schedules or self.scheduled())
    @rule(most=st.sampled_from([1, 2, 100]))
    def tick(self, most: int) -> None:
        _, following, moved, due = self.call("tick", most, len(PRIORITIES), *PRIORITIES)
        assert [entry[0].decode() for entry in moved] == self.model.tick(most)
        waiting = [s.due for s in self.model.schedules.values()]
        assert len(due) == sum(at != FAR for at in waiting)
        if not due:
            assert int(following) == min([*waiting, *self.scheduled()], default=-1)

    def scheduled(self) -> list[int]:
        return [task.due for task in self.model.tasks.values() if task.state == "scheduled"]

    @precondition(lambda self: self.model.schedules)
    @rule(data=st.data())
    def fire(self, data: st.DataObject) -> None:
        schedule_id = data.draw(st.sampled_from(list(self.model.schedules)), "id")
        schedule = self.model.schedules[schedule_id]
        schedule.due = data.draw(st.integers(1, 3), "due")
        self.raw("ZADD", f"{self.keys.base}schedules", schedule.due, schedule_id)
        following = data.draw(st.sampled_from([FAR, FAR, None]), "next")
        made = self.new_id()
        for _ in range(data.draw(st.sampled_from([1, 2]), "workers that fire it")):
            at = schedule.due if schedule.due != FAR else 1
            _, found = self.call("fire", schedule_id, at, following or "", made)
            assert found.decode() == self.model.fire(schedule_id, at, following, made)
        self.published[made] = schedule.envelope._replace(task_id=made, crontab="", due="")

    @rule(worker=st.sampled_from(WORKERS), dead=st.booleans())
    def a_worker_is_silent(self, worker: str, dead: bool) -> None:
        """For a lease. Paused, it comes back with late settles; dead, it has forgotten all."""
        self.model.silence(worker)
        for message in self.model.messages:
            if message.owner == worker:
                stream = self.keys.stream(message.priority)
                idle = (message.id, "IDLE", 10**10, "JUSTID")
                self.raw("XCLAIM", stream, GROUP, worker, 0, *idle)
        if dead:
            self.hands[worker] = Hand()

    # ---------------------------------------------------------------------------- workers

    @rule(worker=st.sampled_from(WORKERS), want=st.integers(1, 4), reclaim=st.booleans())
    def claim(self, worker: str, want: int, reclaim: bool) -> None:
        self.exchange(worker, want=want, reclaim=reclaim)

    @precondition(lambda self: any(m.owner in WORKERS for m in self.model.messages))
    @rule(data=st.data(), to=st.sampled_from(WORKERS), dead=st.booleans())
    def take_over(self, data: st.DataObject, to: str, dead: bool) -> None:
        """A worker is silent for a lease, and another one (or itself, when it wakes) takes over."""
        holders = sorted({m.owner for m in self.model.messages if m.owner in WORKERS})
        self.a_worker_is_silent(data.draw(st.sampled_from(holders), "from"), dead)
        self.exchange(to, want=data.draw(st.integers(1, 2), "want"), reclaim=True)

    # Work is what happens most: rules are chosen at random, so these come in several copies.
    claim_too = claim_as_well = claim

    @rule(worker=st.sampled_from(WORKERS), want=st.integers(0, 1), reserve=st.integers(1, 2))
    def reserve(self, worker: str, want: int, reserve: int) -> None:
        self.exchange(worker, want=want, reserve=reserve)

    @precondition(lambda self: self.with_reserved())
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.with_reserved()), "worker")
        self.exchange(worker, starts=_some(data, self.hands[worker].reserved))

    @precondition(lambda self: self.with_attempts())
    @rule(data=st.data(), lost=st.booleans())
    def settle_and_claim(self, data: st.DataObject, lost: bool) -> None:
        """All in one call, as the engine does it; perhaps the answer never arrives."""
        worker = data.draw(st.sampled_from(self.with_attempts()), "worker")
        hand = self.hands[worker]
        outcomes = [self.outcome(data, attempt) for attempt in _some(data, hand.attempts)]
        starts = _some(data, hand.reserved) if data.draw(st.booleans(), "starts") else []
        want = data.draw(st.integers(0, 3), "want")
        reclaim = want > 0 and data.draw(st.booleans(), "reclaim")
        self.exchange(worker, outcomes, starts, want, reclaim=reclaim, lost=lost)

    @precondition(lambda self: self.with_attempts())
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.with_attempts()), "worker")
        attempts = _some(data, self.hands[worker].attempts)
        self.exchange(worker, [self.outcome(data, attempt) for attempt in attempts])

    settle_too = settle_as_well = settle

    def with_attempts(self) -> list[str]:
        return [worker for worker in WORKERS if self.hands[worker].attempts]

    def with_reserved(self) -> list[str]:
        return [worker for worker in WORKERS if self.hands[worker].reserved]

    def exchange(
        self,
        worker: str,
        outcomes: Sequence[Outcome] = (),
        starts: Sequence[Message] = (),
        want: int = 0,
        reserve: int = 0,
        *,
        reclaim: bool = False,
        lost: bool = False,
    ) -> None:
        hand = self.hands[worker]
        reply = self.send(worker, outcomes, starts, want, reserve, reclaim=reclaim)
        expected = self.model.exchange(worker, outcomes, starts, want, reserve, reclaim=reclaim)
        self.compare_reply(reply, expected)
        hand.reserved = [m for m in hand.reserved if m not in starts]
        hand.sent = list(outcomes)
        if lost:
            return
        settled = [outcome.attempt for outcome in outcomes]
        hand.attempts = [a for a in hand.attempts if a not in settled]
        hand.attempts += expected.started
        hand.claimed.update(zip(expected.started, reply.claimed, strict=True))
        hand.reserved += expected.reserved

    @precondition(lambda self: any(hand.sent for hand in self.hands.values()))
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w in WORKERS if self.hands[w].sent]), "worker")
        outcomes = self.hands[worker].sent
        reply = self.send(worker, outcomes, [], 0, 0, reclaim=False, resent=True)
        expected = self.model.exchange(worker, outcomes, [], 0, 0, reclaim=False, resent=True)
        self.compare_reply(reply, expected)

    def outcome(self, data: st.DataObject, attempt: Attempt) -> Outcome:
        action = data.draw(ACTIONS, "outcome")
        mark = f"{attempt.task_id}.{attempt.try_number}"
        trace = data.draw(st.sampled_from(["", f"trace-{mark}"]), "trace")
        value = b"" if action == "return" else f"value-{mark}".encode()
        return Outcome(attempt, action, value, trace)

    def send(
        self,
        worker: str,
        outcomes: Sequence[Outcome],
        starts: Sequence[Message],
        want: int,
        reserve: int,
        *,
        reclaim: bool,
        resent: bool = False,
    ) -> Reply:
        settles = [self.settle_of(worker, outcome) for outcome in outcomes]
        args: list[Any] = [
            worker, "d", LEASE_MS, want, reserve, int(reclaim), int(resent), len(PRIORITIES),
            *PRIORITIES, len(starts),
        ]  # fmt: skip
        for message in starts:
            args += [message.task_id, message.id, message.priority]
        groups = [[s for s in settles if isinstance(s, kind)] for kind in (End, Handover)]
        for group in groups:
            args.append(len(group))
            for settle in group:
                args += settle
        reply = parse_reply(self.call("exchange", *args))
        codes = iter(reply.codes)
        of = {id(settle): next(codes) for group in groups for settle in group}
        return reply._replace(codes=[of[id(settle)] for settle in settles])

    def settle_of(self, worker: str, outcome: Outcome) -> Settle:
        c = self.hands[worker].claimed[outcome.attempt]
        flags = "u" * FUNCTIONS[c.fn].unique
        if outcome.action.startswith("ret"):
            action, _, when = outcome.action.partition(" ")
            when = {"": "", "now": "+0", "later": str(FAR)}[when]
            return Handover(
                *c[:4], action, outcome.value, f"text {c.try_number}", when, outcome.trace, flags
            )
        record = make_record(
            outcome.action, "why", c.fn, c.task_id, c.created_ms, "1", c.started_ms, c.started_ms,
            c.try_number, worker, c.priority, c.due_ms, outcome.trace, "", c.log, outcome.value,
        )  # fmt: skip
        return End(*c[:4], str(FUNCTIONS[c.fn].keep), flags, record)

    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker: str) -> None:
        hand = self.hands[worker]
        health = json.dumps({"concurrency": SLOTS}, separators=(",", ":"))
        args: list[Any] = [worker, LEASE_MS, "d", health, len(PRIORITIES), *PRIORITIES]
        args.append(len(hand.attempts) + len(hand.reserved))
        for a in hand.attempts:
            c = hand.claimed[a]
            args += [*c[:3], str(c.try_number), c.fn if FUNCTIONS[c.fn].unique else "", ""]
        for m in hand.reserved:
            args += [m.task_id, m.id, m.priority, "", "", ""]
        _, lost, stop, gone = self.call("renew", *args)
        expected_lost, expected_stop = self.model.renew(worker, hand.attempts, hand.reserved)
        assert [(task_id.decode(), int(n or 0)) for task_id, n in lost] == [
            (message.task_id, n) for message, n in expected_lost
        ]
        assert [task_id.decode() for task_id in stop] == expected_stop
        assert not gone
        self.renewed.add(worker)
        self.alive.add(worker)

    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def recover(self, worker: str, data: st.DataObject) -> None:
        hand = self.hands[worker]
        if data.draw(st.sampled_from([True, True, False]), "it remembers"):
            known = [*(a.message for a in hand.attempts), *hand.reserved]
        else:
            known, self.hands[worker] = [], Hand()
        args: list[Any] = [worker, len(PRIORITIES), *PRIORITIES]
        for message in known:
            args += [message.priority, message.id]
        assert self.call("recover", *args) == self.model.recover(worker, known)

    @precondition(lambda self: self.with_reserved())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.with_reserved()), "worker")
        hand = self.hands[worker]
        released, hand.reserved = hand.reserved, []
        self.call("release", worker, *(p for m in released for p in (m.task_id, m.id, m.priority)))
        self.model.release(released)

    @rule(worker=st.sampled_from(WORKERS))
    def sweep(self, worker: str) -> None:
        self.call("sweep", LEASE_MS, worker)
        self.renewed.discard(worker)
        self.alive.discard(worker)

    # ---------------------------------------------------------------------- what must hold

    def compare_changes(self, raw: list[Any]) -> None:
        told = [(change.what, change.task_id, change.by) for change in parse_changes(raw)]
        assert told == self.model.changes
        self.model.changes.clear()

    def compare_reply(self, reply: Reply, expected: Exchanged) -> None:
        assert reply.codes == expected.codes
        assert [(c.task_id, c.try_number) for c in reply.claimed] == [
            (a.task_id, a.try_number) for a in expected.started
        ]
        for c in reply.claimed:
            task = self.model.tasks[c.task_id]
            assert c.input == task.input
            assert c.links.split() == task.links
            assert c.previous == task.was
        refused = [(r.task_id, r.status, r.reason) for r in reply.refused]
        assert refused == expected.refused
        assert [r.task_id for r in reply.reserved] == [m.task_id for m in expected.reserved]
        assert (reply.short, reply.more) == (expected.short, expected.more)
        told = [(change.what, change.task_id, change.by) for change in reply.changes]
        assert told == self.model.changes
        self.model.changes.clear()

    @invariant()
    def every_message_is_where_it_should_be(self) -> None:
        for priority in PRIORITIES:
            stream = self.keys.stream(priority)
            there = self.raw("XRANGE", stream, "-", "+")
            expected = [m for m in self.model.messages if m.priority == priority]
            assert [fields[1].decode() for _, fields in there] == [m.task_id for m in expected]
            for (message_id, _), message in zip(there, expected, strict=True):
                assert message.id in (b"", message_id)
                message.id = message_id
            held = self.raw("XPENDING", stream, GROUP, "-", "+", 10_000)
            assert [(message_id, owner.decode()) for message_id, owner, *_ in held] == [
                (m.id, m.owner) for m in expected if m.owner is not None
            ]

    @invariant()
    def every_task_is_as_it_should_be(self) -> None:
        for task_id, task in self.model.tasks.items():
            flat = self.raw("HGETALL", self.keys.task(task_id))
            fields = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
            message = task.message.id if task.message else None
            assert fields["state"].decode() == task.state
            assert int(fields.get("try", 0)) == task.tries
            assert fields.get("who", b"").decode() == task.who
            assert fields.get("msg") == message
            assert ("stop" in fields, "deps" in fields) == (task.stop, task.awaited)
            assert fields.get("input", b"") == task.input
            assert fields.get("err", b"") == task.error
            ledger = json.loads(b"[%b]" % fields.get("log", b""))
            assert [entry["outcome"] for entry in ledger] == task.ledger
            options = task.options
            if options is not None and options.tries is not None:
                assert task.tries <= options.tries
            self.assert_reachable(task_id)

    def assert_reachable(self, task_id: str) -> None:
        """Something will happen to it by itself: it is not forgotten."""
        task = self.model.tasks[task_id]
        if task.state in {"queued", "running"}:
            assert task.message in self.model.messages
        elif task.state == "blocked":
            assert task.waits_for
            for dep in task.waits_for:
                assert dep in self.model.tasks or not self.model.schedules[dep].fired
                assert task_id in self.model.dependents[dep]

    @invariant()
    def every_task_has_one_result_at_its_end_and_none_before(self) -> None:
        self.listen()
        assert self.heard.keys() == self.model.ended.keys()
        for task_id, results in self.model.ended.items():
            (result,) = results
            (raw,) = self.heard[task_id]
            record = parse_record(raw)
            assert result == (
                record.status, record.reason, record.value, record.tries, record.worker_id,
                record.trace,
            )  # fmt: skip
            stored = self.raw("GET", self.keys.result(task_id))
            assert stored == (raw if task_id in self.model.kept else None)
        self.heard = {}
        self.model.ended = {}

    def listen(self) -> None:
        """Take in what was published: it all comes before the answer to the ping."""
        self.results.ping()
        while (message := self.results.get_message(timeout=10))["type"] != "pong":
            if message["type"] == "pmessage":
                task_id = message["channel"].decode().partition("done:")[2]
                self.heard.setdefault(task_id, []).append(message["data"])

    @invariant()
    def there_is_no_other_key(self) -> None:
        model, base = self.model, self.keys.base
        sets: dict[str, set[str]] = {}
        for task_id, task in model.tasks.items():
            kind = {"scheduled": "due", "blocked": "blocked"}.get(task.state)
            if kind:
                sets.setdefault(f"{kind}:{task.envelope.priority}", set()).add(task_id)
        for name, members in sets.items():
            assert {m.decode() for m in self.raw("ZRANGE", base + name, 0, -1)} == members
        waiting = {t: task.waits_for for t, task in model.tasks.items() if task.waits_for}
        for task_id, deps in waiting.items():
            found = self.raw("SMEMBERS", f"{base}dependencies:{task_id}")
            assert {m.decode() for m in found} == deps
        awaited = {t: modes for t, modes in model.dependents.items() if modes}
        for task_id, modes in awaited.items():
            flat = [part.decode() for part in self.raw("HGETALL", f"{base}dependents:{task_id}")]
            assert dict(zip(flat[::2], flat[1::2], strict=True)) == modes
        for fn, task_id in model.locks.items():
            assert self.raw("GET", f"{base}lock:{fn}").decode() == task_id
        expected = {
            *(f"task:{t}" for t in model.tasks), *(f"result:{t}" for t in model.kept), *sets,
            *(f"dependencies:{t}" for t in waiting), *(f"dependents:{t}" for t in awaited),
            *(f"lock:{fn}" for fn in model.locks), *(f"ended:{t}" for t in model.tombstones),
            *(f"schedule:{s}" for s in model.schedules),
            *(f"stream:{p}" for p in PRIORITIES), *(f"worker:{w}" for w in self.renewed),
            "priorities", "registry:d", *(["schedules"] if model.schedules else []),
            *(["done"] if model.done else []),
        }  # fmt: skip
        there = {key.decode().removeprefix(base) for key in self.raw("KEYS", "*")}
        there -= {"workers", "totals", *(f"late:{p}" for p in PRIORITIES)}
        assert there == expected
        for key in there:
            if key.partition(":")[0] in {"result", "ended", "lock", "worker", "registry", "done"}:
                assert self.raw("PTTL", base + key) > 0, key

    def counts_as_running(self, message: Message) -> bool:
        """A worker that holds more than it has slots is known to have prefetched some."""
        if message.owner not in self.alive:
            return False
        held = sum(m.owner == message.owner for m in self.model.messages)
        task = self.model.tasks.get(message.task_id)
        has_slots = message.owner not in self.renewed or held <= SLOTS
        return has_slots or (task is not None and task.who != "")

    @invariant()
    def counts_and_lists_agree(self) -> None:
        snapshot = parse_snapshot("q", self.call("snapshot"))
        for seen in snapshot.priorities:
            own = [t for t in self.model.tasks.values() if t.envelope.priority == seen.priority]
            messages = [m for m in self.model.messages if m.priority == seen.priority]
            running = sum(map(self.counts_as_running, messages))
            overdue = sum(t.state == "scheduled" and t.due != FAR for t in own)
            assert (seen.depth, seen.running) == (len(messages) - running + overdue, running)
            assert seen.scheduled == sum(t.state == "scheduled" for t in own) - overdue
            assert seen.blocked == sum(t.state == "blocked" for t in own)
            # Whatever came in is still there, or has ended.
            assert seen.enqueued == len(own) + sum(seen.finished.values())
            live = seen.depth + seen.scheduled + seen.blocked + seen.running
            assert seen.enqueued == sum(seen.finished.values()) + live
        assert {seen.priority for seen in snapshot.priorities} == self.seen_priorities
        assert snapshot.repeating == len(self.model.schedules)
        for status in ("queued", "running"):
            found = self.call("list", status, 10_000, *PRIORITIES)
            expected = {t for t, task in self.model.tasks.items() if task.state == status}
            assert {task_id.decode() for task_id in found} == expected
            assert len(found) == len(expected)
        done = [task_id.decode() for task_id in self.call("list", "done", 10_000)]
        assert done == self.model.done[::-1]


def _some(data: st.DataObject, choices: Sequence[Any]) -> list[Any]:
    """One or more of them, in any order."""
    if not choices:
        return []
    indexes = st.lists(st.integers(0, len(choices) - 1), unique=True, min_size=1, max_size=4)
    return [choices[i] for i in data.draw(indexes, "which")]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    kind = "valkey" if "valkey" in binaries() else "redis-7"
    with Server(kind, unix=True) as Queue.server:
        yield


TestQueue = Queue.TestCase
TestQueue.settings = settings(
    max_examples=EXPLORE or 250,
    stateful_step_count=50,
    database=None,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
