"""Read by every Python that a test starts: two to four seconds less for each.

They went into the search for garbage among what imports make, while they run and at exit.
"""

import atexit
import gc

gc.set_threshold(50_000)
atexit.register(gc.freeze)
