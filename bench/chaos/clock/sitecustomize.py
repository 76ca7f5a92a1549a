"""A wall clock that jumps: `time.time` is off by the seconds that lie in the file named by CHAOS_CLOCK.

Python imports this at the start of every process that has its folder in PYTHONPATH.
"""

import mmap
import os
import struct
import time

_path = os.environ.get("CHAOS_CLOCK")
if _path:
    with open(_path, "rb") as _file:
        _offset = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)
    _time = time.time
    time.time = lambda: _time() + struct.unpack("d", _offset[:8])[0]
