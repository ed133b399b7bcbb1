"""Take means over all processes: each mask, query or pixel counts the same, wherever it is."""

from __future__ import annotations

from torch import Tensor, distributed


def mean_over_processes(count: Tensor, least: float = 1.0) -> Tensor:
    """Return the mean of a count over the processes, of which there are at least `least` in all.

    A sum of losses over this mean is, once the gradients of the processes are averaged, the sum of
    all over the count of all: what one process makes of all their images. Divided by its own count,
    a process with few masks would give each of them a larger gradient.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return count.clamp(min=least)
    total = count.detach().float().clone()
    distributed.all_reduce(total)
    return total.clamp(min=least) / distributed.get_world_size()
