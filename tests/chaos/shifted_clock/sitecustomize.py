"""First on a process's PYTHONPATH, this lets it and its children see another time of day; what is monotonic stays.

Only what asks Python for the time is deceived, which is all there is here: leases and timestamps.
"""

import os
import time

import time_machine

time_machine.travel(time.time() + float(os.environ["CHAOS_CLOCK_SHIFT_SECONDS"]), tick=True).start()
