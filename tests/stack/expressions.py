"""Reads PromQL: which series an expression selects, and what stands around each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import promql_parser
from promql_parser import (
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    MatrixSelector,
    ParenExpr,
    SubqueryExpr,
    UnaryExpr,
    VectorSelector,
)

MARKERS = {"$__rate_interval": "7777s", "$__range": "8888s", "$__interval": "9999s"}
"""Durations that nobody would write, in place of the ones that Grafana fills in."""


@dataclass(frozen=True)
class Use:
    """One selector in an expression, with everything that it stands in, the outermost first."""

    selector: VectorSelector
    around: tuple[Expr, ...]

    @property
    def name(self) -> str:
        return self.selector.name or next(
            matcher.value for matcher in self.matchers if matcher.name == "__name__"
        )

    @property
    def matchers(self) -> list[promql_parser.Matcher]:
        return self.selector.matchers.matchers

    @property
    def labels(self) -> dict[str, str]:
        return {matcher.name: matcher.value for matcher in self.matchers}

    @property
    def window(self) -> str | None:
        """The range of the selector as it was written, or None for an instant."""
        for expression in self.around:
            if isinstance(expression, MatrixSelector):
                seconds = f"{expression.range.total_seconds():.0f}s"
                named = {marker: name for name, marker in MARKERS.items()}
                return named.get(seconds, seconds)
        return None

    @property
    def functions(self) -> list[str]:
        return [around.func.name for around in self.around if isinstance(around, Call)]


def parse(expression: str) -> Expr:
    """The tree of ``expression``; raises ``ValueError`` when it is not PromQL."""
    for name, marker in MARKERS.items():
        expression = expression.replace(name, marker)
    return promql_parser.parse(expression)


def uses(expression: Expr, around: tuple[Expr, ...] = ()) -> Iterator[Use]:
    """Every selector of ``expression``."""
    if isinstance(expression, VectorSelector):
        yield Use(expression, around)
    for child in children(expression):
        yield from uses(child, (*around, expression))


def children(expression: Expr) -> list[Expr]:
    """What ``expression`` is made of."""
    if isinstance(expression, BinaryExpr):
        return [expression.lhs, expression.rhs]
    if isinstance(expression, Call):
        return list(expression.args)
    if isinstance(expression, MatrixSelector):
        return [expression.vector_selector]
    if isinstance(expression, AggregateExpr | ParenExpr | SubqueryExpr | UnaryExpr):
        return [expression.expr]
    return []
