"""`python -m eomt_exp.worker` runs a command as a job, which ends with whoever started it.

EOMT_PROCESSES above 1 makes the job a group under torchrun, in this very process: a process in
between could die and leave the group behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from eomt_exp.jobs import PROCESSES_ENV, STARTER_ENV

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h; it survives an exec


def main() -> None:
    """Run the command, or become the torchrun whose processes do."""
    # Taken out of the environment: torchrun hands that on to its processes, which come here too.
    starter = os.environ.pop(STARTER_ENV, None)
    processes = int(os.environ.pop(PROCESSES_ENV, "1"))
    if starter is None:
        # A rank, whose torchrun is its parent and closes it in peace. When that is gone, the
        # other ranks are too, and who waits for them inside a collective hears no SIGTERM.
        end_with_parent(os.getppid(), signal.SIGKILL)
    else:
        end_with_parent(int(starter), signal.SIGTERM)
    if processes > 1:
        group = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
        ranks = (*group, "-m", "eomt_exp.worker")  # --standalone: on a free port of its own
        os.execv(sys.executable, [sys.executable, *ranks, *sys.argv[1:]])
    from eomt_exp import cli

    cli.main()


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Have Linux send this process a signal when its parent dies; elsewhere nothing does."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        sys.exit(f"error: process {parent}, which started this job, is gone.")


if __name__ == "__main__":
    main()
