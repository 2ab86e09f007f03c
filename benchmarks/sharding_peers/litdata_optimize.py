"""litdata's `optimize` into chunks of 64 MB; its workers are forked: spawned ones import torch first."""

from functools import partial

from litdata import optimize
from peer import Row, read_image, read_job, timed


def sample(row: Row, *, verify: bool) -> dict[str, bytes | str]:
    return {
        "image": read_image(row, verify=verify),
        "caption": row.caption,
        "described": row.described,
    }


if __name__ == "__main__":
    job = read_job()
    with timed():
        optimize(
            fn=partial(sample, verify=job.verify),
            inputs=job.rows,
            output_dir=str(job.out),
            chunk_bytes="64MB",
            num_workers=job.processes,
            reorder_files=False,
            start_method="fork",
            verbose=False,
        )
