"""How the published code reads: a table, an image file for each row, Pillow, torch's DataLoader."""

from peer import BATCH, Job, main, published_transform
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler


class CsvDataset(Dataset):
    """Rows of the table; an image is opened from its file and transformed."""

    def __init__(self, job: Job) -> None:
        self.rows, self.transform = job.rows(), published_transform()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple:
        row = self.rows[index]
        return self.transform(Image.open(row.image)), row.caption


def batches(job: Job):
    dataset = CsvDataset(job)
    endless = RandomSampler(dataset, num_samples=1000 * len(dataset))  # each sample once per len(dataset)
    return iter(DataLoader(dataset, BATCH, sampler=endless, drop_last=True, **job.loader_options()))


if __name__ == "__main__":
    main(batches)
