"""``streaq run`` as the demo starts it: ``python -m streaq.cli.demo.kept FD run WORKER ...``.

FD is one end of a socket. When the other goes silent for good the demo is dead, however it died,
and the workers stop in good order instead of being left behind.
"""

from __future__ import annotations

import socket
import sys
import threading

from streaq.cli import main
from streaq.cli.child import stop_with

if __name__ == "__main__":
    demo = socket.socket(fileno=int(sys.argv.pop(1)))
    threading.Thread(target=stop_with, args=(demo,), name="streaq-demo", daemon=True).start()
    main()
