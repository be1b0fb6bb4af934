"""embedded:// : starts a Valkey server on this machine, from the ``embedded`` extra.

``embedded://`` is one private server for the process and its children: it keeps nothing on disk and
ends with the process, however that ends. ``embedded:///path/to/dir`` keeps its data in that
directory (append-only file, at most a second behind) and serves every process that names it. The
first of them starts it, the last to exit stops it; if the last was killed, it is left running and
whoever names the directory next finds it and uses it. Neither listens on a port: both have a Unix
socket that only its owner can open.
"""

from __future__ import annotations

import atexit
import os
import threading

from streaq.broker.embedded import private, shared
from streaq.broker.options import embedded_directory

_lock = threading.Lock()


def start_embedded(url: str) -> str:
    """The ``unix://`` URL of the server that an ``embedded://`` URL means; starts it if nobody has.

    Blocks until the server answers. May be called from any thread, as often as one likes.

    :param url: ``embedded://`` or ``embedded://`` and a directory; a relative one is taken from the
        current directory, and ``~`` is the home directory.
    :raises StreaqError: the extra is missing, the directory cannot be used, or the server does not
        start (with the end of its log).

    Example::

        client = redis.Redis.from_url(start_embedded("embedded://"))
    """
    directory = embedded_directory(url)
    with _lock:
        path = private.start() if directory is None else shared.join(directory)
    return f"unix://{path}"


def stop_embedded(url: str) -> None:
    """Ends this process's use of the server, which happens by itself at exit. A private server
    stops, if this process started it; a shared one stops if nobody else uses it.
    """
    directory = embedded_directory(url)
    with _lock:
        if directory is None:
            private.stop()
        else:
            shared.leave(directory)


def _at_exit() -> None:
    with _lock:
        private.stop()
        shared.leave_all()


# A fork must not copy the lock while another thread, which the child will not have, holds it.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)
atexit.register(_at_exit)
