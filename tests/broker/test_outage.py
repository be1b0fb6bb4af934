"""Which errors a worker waits out, for how long, and what a person is told."""

from __future__ import annotations

import errno
import random
import ssl

import pytest
from redis import exceptions as errors
from redis.asyncio.sentinel import MasterNotFoundError

from streaq.broker.outage import Backoff, explain, is_connection_lost
from streaq.types import StreaqError


@pytest.mark.parametrize(
    "exc",
    [
        errors.ConnectionError("Connection closed by server."),
        errors.TimeoutError("Timeout reading"),
        errors.BusyLoadingError("Redis is loading the dataset in memory"),
        errors.ReadOnlyError("You can't write against a read only replica."),
        errors.ClusterDownError("CLUSTERDOWN The cluster is down"),
        errors.MasterDownError("MASTERDOWN Link with MASTER is down"),
        errors.ClusterError("TTL exhausted."),
        errors.TryAgainError("Multiple keys request during rehashing of slot"),
        errors.SlotNotCoveredError('Slot "1" is not covered by the cluster.'),
        errors.RedisClusterException("Redis Cluster cannot be connected. Please provide ..."),
        errors.RedisClusterException("All slots are not covered after query all startup_nodes."),
        errors.RedisClusterException("startup_nodes could not agree on a valid slots cache: ..."),
        errors.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        errors.ResponseError("UNBLOCKED force unblock from blocking operation, instance state ..."),
        errors.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it's ..."),
        errors.ResponseError("NOREPLICAS Not enough good replicas to write."),
        errors.ResponseError(
            "Error running script (call to f_0): @user_script:1: "
            "@user_script: 1: -READONLY You can't write against a read only replica. "
        ),
        MasterNotFoundError("No master found for 'mymaster'"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError(errno.ETIMEDOUT, "Connection timed out"),
        BrokenPipeError(),
    ],
)
def test_waited_out(exc: Exception) -> None:
    assert is_connection_lost(exc)


@pytest.mark.parametrize(
    "exc",
    [
        errors.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        errors.ResponseError("the argument says READONLY"),
        errors.NoScriptError("No matching script."),
        errors.NoPermissionError("this user has no permissions"),
        errors.RedisClusterException("EVALSHA - all keys must map to the same key slot"),
        errors.DataError("Invalid input"),
        TimeoutError(),
        StreaqError("x"),
        ValueError("x"),
        KeyboardInterrupt(),
    ],
)
def test_not_waited_out(exc: BaseException) -> None:
    assert not is_connection_lost(exc)


def test_backoff_limits_double_up_to_the_cap() -> None:
    class Highest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            assert a == 0
            return b

    backoff = Backoff(base=0.05, cap=5, rng=Highest())
    limits = [backoff.next_delay() for _ in range(9)]
    assert limits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    backoff.reset()
    assert backoff.next_delay() == 0.05


def test_backoff_is_random_within_its_limits() -> None:
    backoff = Backoff(base=1, cap=1, rng=random.Random(7))
    delays = [backoff.next_delay() for _ in range(500)]
    assert all(0 <= delay <= 1 for delay in delays)
    assert min(delays) < 0.1
    assert max(delays) > 0.9
    assert len(set(delays)) == 500


def test_backoffs_of_two_workers_differ() -> None:
    one, other = Backoff(), Backoff()
    assert [one.next_delay() for _ in range(5)] != [other.next_delay() for _ in range(5)]


def test_the_cause_is_explained_rather_than_the_symptom() -> None:
    def wrapped(cause: Exception) -> Exception:
        exc = errors.RedisClusterException("Redis Cluster cannot be connected.")
        exc.__cause__ = errors.ConnectionError("x")
        exc.__cause__.__context__ = cause
        return exc

    assert "login" in explain(wrapped(errors.AuthenticationError("x")), tls=False)
    assert "TLS fails" in explain(wrapped(ssl.SSLError("x")), tls=True)
    assert "cluster_nodes" in explain(wrapped(ValueError("x")), tls=False)


def test_explanations_are_one_line() -> None:
    assert "\n" not in explain(errors.ConnectionError("two\nlines"), tls=False)
    assert "{" in explain(errors.NoPermissionError("odd {text} in it"), tls=False)


def test_the_hint_at_tls_fits() -> None:
    for lost in (errors.ConnectionError("closed by server"), TimeoutError()):
        assert "if it wants TLS, say rediss://" in explain(lost, tls=False)
        assert "if it has no TLS, say redis://" in explain(lost, tls=True)
