"""A sampling profiler small enough to leave the worker's rate as it is."""

from __future__ import annotations

import json
import os
import signal

import _common as common


class Sampler:
    """Notes where the processor time of the main thread goes, by a timer that runs only while it
    computes.

    Stacks are written as "innermost;...;outer" with how often each was seen. It looks only while
    tasks are being counted, so starting up is not in it.
    """

    PERIOD_S = 0.001
    DEPTH = 14

    def __init__(self, counting) -> None:
        self.counting = counting
        self.seen: dict[str, int] = {}
        self.total = 0
        self.looking = False

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self.look)
        signal.setitimer(signal.ITIMER_PROF, self.PERIOD_S, self.PERIOD_S)

    def look(self, _number, frame) -> None:
        if self.looking or not self.counting():  # the timer goes on while this looks
            return
        self.looking = True
        try:
            self.note(frame)
        finally:
            self.looking = False

    def note(self, frame) -> None:
        stack = []
        while frame is not None and len(stack) < self.DEPTH:
            stack.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
            frame = frame.f_back
        key = ";".join(stack)
        self.seen[key] = self.seen.get(key, 0) + 1
        self.total += 1
        if self.total % 10 == 0 or self.total < 50:  # a short run has few
            draft = common.DIR / f"{os.getpid()}.draft"
            draft.write_text(json.dumps(self.seen))
            draft.replace(common.DIR / f"{os.getpid()}.stacks")
