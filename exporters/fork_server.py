"""What the server that children are forked from imports first: until a child begins its work, Ctrl-C ends it quietly.

Python's own handler would print where among the imports it was interrupted. Not for any other process to import.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in a shell's background jobs
    signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
