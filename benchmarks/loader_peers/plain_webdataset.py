"""The webdataset package as its documentation shows it: Pillow decodes, torchvision transforms."""

import webdataset as wds
from peer import BATCH, Job, main, published_transform


def as_it_is(text: str) -> str:
    return text


def batches(job: Job):
    dataset = (
        wds.WebDataset(job.tar_urls(), shardshuffle=100)
        .repeat()
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg;png;gif", "txt")
        .map_tuple(published_transform(), as_it_is)
        .batched(BATCH, partial=False)
    )
    return iter(wds.WebLoader(dataset, batch_size=None, shuffle=False, **job.loader_options()))


if __name__ == "__main__":
    main(batches)
