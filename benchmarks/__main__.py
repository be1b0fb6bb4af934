"""The command line: makes what it needs, measures, writes results, tables and plots."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import bars, entrants, report, standings, venvs
from benchmarks.figures import RESULTS, Book, machine
from benchmarks.measures import Setup
from benchmarks.rounds import Plan, Session, say
from benchmarks.server import Server, ServerError
from benchmarks.stage import RunError
from benchmarks.workloads import BY_NAME, WORKLOADS, Workload


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parse.add_argument("--only", default="", help="peers to compare with, by comma: streaq,taskiq")
    parse.add_argument("--workloads", default="", help="rows to measure, by comma: drain,latency")
    parse.add_argument(
        "--runs", type=int, default=3, help="rounds; long rows run in the first only"
    )
    parse.add_argument("--seconds", type=float, default=2.5, help="how long a drain should take")
    parse.add_argument(
        "--budget-minutes", type=float, default=0, help="stop after this; 0: no limit"
    )
    parse.add_argument(
        "--n", type=int, help="tasks in a run, instead of sizing by time (smoke test)"
    )
    parse.add_argument(
        "--span", type=float, default=60, help="seconds over which lateness is spread"
    )
    parse.add_argument(
        "--backlog", default="1000000,100000", help="queued,scheduled of the backlog"
    )
    parse.add_argument(
        "--patience",
        type=float,
        default=30,
        help="seconds to enqueue a backlog in, and a quarter of those for waiters",
    )
    parse.add_argument(
        "--bars", action="store_true", help="only the head-to-head with streaq 7.2.0"
    )
    parse.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="file to measure into; README.md and plots are written beside it",
    )
    parse.add_argument("--report", action="store_true", help="only rewrite the tables and plots")
    parse.add_argument("--no-report", action="store_true", help="leave README.md and plots alone")
    parse.add_argument("--upgrade", action="store_true", help="install the newest peers")
    parse.add_argument("--list", action="store_true", help="list peers and workloads")
    return parse


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    # So that a session that is told to end stops its workers and servers on its way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return command(args)
    except (ValueError, venvs.SetupError, ServerError, RunError) as error:
        say(f"benchmarks: {error}")
        return 2


def command(args: argparse.Namespace) -> int:
    if args.list:
        print("peers:    ", ", ".join(e.name for e in entrants.ENTRANTS))
        print("workloads:", ", ".join(w.name for w in WORKLOADS))
        return 0
    standings.load_reasons()  # a mistake in it is told before the hour, not after
    book = Book.load(args.results)
    if args.report:
        report.write(book)
        tell(args, book)
        return 0
    who = entrants.chosen(names(args.only))
    rows = picked(names(args.workloads))
    if args.bars:
        who = [entrants.BY_NAME[entrants.OURS], entrants.BY_NAME[entrants.UPSTREAM]]
        rows = [
            w
            for w in bars.bar_workloads()
            if not args.workloads or w.name[4:] in names(args.workloads)
        ]
    for name in dict.fromkeys(e.environment for e in who):
        venvs.ensure(name, upgrade=args.upgrade)
    measure(args, book, who, rows)
    if not args.no_report:
        report.write(book)
    tell(args, book)
    return 0


def tell(args: argparse.Namespace, book: Book) -> None:
    rows = bars.verdicts(book) if args.bars else bars.targets(book)
    lacking = standings.unexplained(book, standings.load_reasons())
    print(report.lines_for_terminal(rows, lacking))


def measure(
    args: argparse.Namespace,
    book: Book,
    who: list[entrants.Entrant],
    rows: list[Workload],
) -> None:
    with Server() as server:
        book.about["machine"] = machine(server.version())
    book.about["measured"] = datetime.now(UTC).strftime("%Y-%m-%d")
    queued, scheduled = map(int, args.backlog.split(","))
    setup = Setup(
        0, min(args.span, 20) if args.bars else args.span, queued, scheduled, args.patience
    )
    plan = Plan(args.runs, args.seconds, args.budget_minutes * 60, args.n, setup)
    session = Session(book, plan, who)
    session.learn()
    session.run(rows)
    book.save()


def names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def picked(wanted: list[str]) -> list[Workload]:
    unknown = sorted(set(wanted) - set(BY_NAME))
    if unknown:
        raise ValueError(f"unknown workload {', '.join(unknown)}; known: {', '.join(BY_NAME)}")
    return [w for w in WORKLOADS if not wanted or w.name in wanted]


if __name__ == "__main__":
    sys.exit(main())
