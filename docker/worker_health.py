"""Health check of the worker image: succeeds while the worker of this container tells Redis that it lives."""

import os
import socket
import sys

from workers.board import JobBoard
from workers.connection import connect

if __name__ == "__main__":
    board = JobBoard(connect(os.environ["REDIS_URL"]))
    sys.exit(0 if any(beat.host == socket.gethostname() for beat in board.beats()) else 1)
