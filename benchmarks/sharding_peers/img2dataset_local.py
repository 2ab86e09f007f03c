"""`img2dataset` on local files (file:// addresses), images kept at their size.

Checked, it decodes every image with OpenCV and writes JPEG files through as they are, others encoded anew;
unchecked, it writes all files through without a look.
"""

import csv
import os

from peer import read_job, timed

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # a look at the network when it is imported

from img2dataset import download

THREADS = 4  # of each process: 1, 2, 4 and 16 could not be told apart from the noise

if __name__ == "__main__":
    job = read_job()
    addresses = job.out / "addresses.csv"
    with open(addresses, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption", "row"])
        writer.writerows((row.image.as_uri(), row.caption, int(row.key)) for row in job.rows)
    with timed():
        download(
            url_list=str(addresses),
            input_format="csv",
            url_col="url",
            caption_col="caption",
            save_additional_columns=["row"],
            output_format="webdataset",
            output_folder=str(job.out / "shards"),
            number_sample_per_shard=job.samples_per_shard,
            processes_count=job.processes,
            thread_count=THREADS,
            resize_mode="no",
            skip_reencode=True,
            disable_all_reencoding=not job.verify,
            compute_hash=None,
            extract_exif=False,
            enable_wandb=False,
        )
