"""Batches samples and streams image sets without touching the global random generator."""

from __future__ import annotations

import multiprocessing.queues
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, RandomSampler

from eomt_exp.contracts import Batch, ImageSet, LabelledImage, Sample, UserError


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size; targets stay a list, each has its own number of masks.

    Copies come behind all samples, and on top of the batch size: with copies a batch holds up to
    twice as many images, while steps, epochs and progress count the samples alone.
    """
    copies = [
        sample.copy._replace(target=sample.copy.target._replace(copy_of=index))
        for index, sample in enumerate(samples)
        if sample.copy is not None
    ]
    images, targets, names = zip(*(sample[:3] for sample in (*samples, *copies)), strict=True)
    return Batch(torch.stack(images), list(targets), list(names))


def check_enough_images(count: int, batch_size: int, accumulate: int, processes: int) -> None:
    """Raise UserError for too few images to fill a step's batches, of which none may be smaller."""
    if count < batch_size * accumulate * processes:
        most = max(count // (accumulate * processes), 1)
        raise UserError(
            f"trainer.batch_size={batch_size} x trainer.accumulate={accumulate} images in each "
            f"process, of which there are {processes}, are more than the {count} training images, "
            f"so nothing would be trained. Type trainer.batch_size={most}, or less of the others."
        )


def training_loader(
    dataset: Dataset[Sample], batch_size: int, num_workers: int, seed: int
) -> DataLoader[Batch]:
    """Yield shuffled batches of exactly batch_size samples.

    Order and worker seeds each have a generator of their own. From the global one each new iterator
    would draw, and a resumed run would part from the first; from a common one the order would
    depend on whether workers outlive an epoch.
    """
    order = torch.Generator().manual_seed(seed)
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # the stubs know no collate_fn that changes the type
        batch_size=batch_size,
        sampler=RandomSampler(dataset, generator=order),  # type: ignore[arg-type]
        drop_last=True,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
        **_worker_options(num_workers),
    )


def image_loader(images: ImageSet, num_workers: int) -> Iterator[LabelledImage]:
    """Yield every image once, in order; workers decode the next ones in the background."""
    loader: DataLoader[LabelledImage] = DataLoader(
        images,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # without it numpy arrays become tensors
        generator=torch.Generator(),
        **_worker_options(num_workers, persistent=False),
    )
    return iter(loader)


def _worker_options(num_workers: int, persistent: bool = True) -> dict[str, Any]:
    if not num_workers:
        return {"num_workers": 0}
    # Here, before any worker is forked: a fork inherits OpenCV's thread pool without its threads,
    # and a worker that then asks to change their number waits for them for ever.
    cv2.setNumThreads(1)
    return {
        "num_workers": num_workers,
        "persistent_workers": persistent,
        "worker_init_fn": _begin_worker,
    }


def _begin_worker(worker: int) -> None:
    """Leave parallelism to the processes: threads in each would fight over the same cores.

    And leave the answer to signals to the main process, which saves its step: Ctrl-C, torchrun and
    Slurm send them to the workers too, and nobody can go on without their batches.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # for spawned workers; in forked ones it is 1 already
    multiprocessing.queues.Queue._on_queue_feeder_error = _hand_over  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _hand_over(queue: Any, error: Exception, item: tuple[int, Any]) -> None:
    """Send an error in place of the batch that could not be sent, for which all would wait."""
    if "</torch_" in str(error):  # the name of a file in shared memory
        error = UserError(
            f"the shared memory in which processes hand over batches is too small ({error}). Type "
            "trainer.num_workers=0 or a smaller trainer.batch_size, or enlarge /dev/shm (docker: "
            "--shm-size)."
        )
    queue.put((item[0], ExceptionWrapper((type(error), error, None), "in a loader's worker")))


def _end_with_parent() -> None:
    """End this worker when the main process, and nobody else, terminates it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _as_it_is(image: LabelledImage) -> LabelledImage:
    return image
