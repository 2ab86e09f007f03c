"""MosaicML's `MDSWriter`; with several processes, each its own folder, and one index over all at the end."""

from multiprocessing import get_context

from peer import Job, read_image, read_job, timed
from streaming import MDSWriter
from streaming.base.util import merge_index

COLUMNS = {"image": "bytes", "caption": "str", "described": "bytes"}


def write(job: Job, process: int) -> None:
    with MDSWriter(out=str(job.out / f"{process:02d}"), columns=COLUMNS) as writer:
        for row in job.part(process):
            writer.write(
                {
                    "image": read_image(row, verify=job.verify),
                    "caption": row.caption,
                    "described": row.described,
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
        merge_index(str(job.out), keep_local=True)
