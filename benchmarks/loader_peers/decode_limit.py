"""The limit: the loader's decode function alone, on threads, over images in memory; nothing else is done."""

import itertools
import json
import sys
import threading
import time

import numpy as np
import torch
from peer import SIZE, Job, cpu_seconds, summary

from pipeline.decode import TrainImages


def limit(job: Job) -> dict[str, float]:
    """Samples decoded per second by `workers` threads that take images in random order."""
    stage = TrainImages(SIZE)
    images = [memoryview(row.image.read_bytes()) for row in job.rows()]
    generator = np.random.default_rng(0)
    order = generator.permutation(len(images)).tolist()
    drawn = generator.random((len(images), stage.uniforms)).tolist()
    decoded, stopping = [0] * job.workers, threading.Event()

    def decode(thread: int) -> None:
        torch.set_num_threads(1)
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        for place in itertools.cycle(range(thread, len(images), job.workers)):
            if stopping.is_set():
                return
            stage(images[order[place]], drawn[place], out)
            decoded[thread] += 1

    threads = [threading.Thread(target=decode, args=(thread,)) for thread in range(job.workers)]
    for thread in threads:
        thread.start()
    time.sleep(job.warm_up)
    start, before, used = time.perf_counter(), sum(decoded), cpu_seconds()
    time.sleep(job.seconds)
    samples, seconds, cpu = sum(decoded) - before, time.perf_counter() - start, cpu_seconds() - used
    stopping.set()
    for thread in threads:
        thread.join()
    return summary(samples, seconds, cpu, 0)


if __name__ == "__main__":
    print(json.dumps(limit(Job(**json.loads(sys.argv[2])))))
