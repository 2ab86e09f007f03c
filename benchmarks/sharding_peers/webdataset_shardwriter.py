"""`webdataset.ShardWriter` in the loop of its documentation; with several processes, each its own shards."""

from multiprocessing import get_context

import webdataset as wds
from peer import Job, read_image, read_job, timed


def write(job: Job, process: int) -> None:
    pattern = str(job.out / f"part{process}-%06d.tar")
    with wds.ShardWriter(pattern, maxcount=job.samples_per_shard, verbose=0) as writer:
        for row in job.part(process):
            writer.write(
                {
                    "__key__": row.key,
                    row.extension: read_image(row, verify=job.verify),
                    "txt": row.caption.encode(),
                    "json": row.described,
                }
            )


if __name__ == "__main__":
    job = read_job()
    with timed():
        if job.processes == 1:
            write(job, 0)
        else:
            with get_context("fork").Pool(job.processes) as pool:
                pool.starmap(write, [(job, process) for process in range(job.processes)], chunksize=1)
