"""`python stopping.py WORKDIR MODULE FLAGS…`: stops itself before each change of a file of WORKDIR.

What is on disk while it is stopped is what a kill at that moment leaves.
"""

import os
import runpy
import signal
import sys

workdir, module = sys.argv[1:3]
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def stop_before_changes(event, args):
    """Stops all threads where a Python function is about to change something in the workdir."""
    if event not in CHANGES or not str(args[0]).startswith(workdir):
        return
    if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        return
    os.kill(os.getpid(), signal.SIGSTOP)


sys.argv = [module, *sys.argv[3:]]
sys.addaudithook(stop_before_changes)
runpy.run_module(module, run_name="__main__")
