"""Files are not forced to disk: a kill loses nothing that was written, so tests need not wait for one to turn."""

import os

os.fsync = lambda descriptor: None  # what it is for, a loss of power, no test can show
