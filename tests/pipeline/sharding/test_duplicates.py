"""The hashing pass: rows whose image was there before, over many chunks of rows."""

import numpy as np

from pipeline.sharding.duplicates import CHUNK_ROWS, hashes_name, read_duplicates, write_duplicates
from shards import Folder


def test_every_image_that_was_there_before_is_found_over_all_chunks(tmp_path):
    folder, generator = Folder(tmp_path), np.random.default_rng(0)
    rows = 2 * CHUNK_ROWS + 500
    distinct = generator.integers(1, 2**63, (9_000, 2)).astype(np.uint64)
    distinct[1::2, 0] = distinct[::2, 0]  # equal in the half that is compared first, yet different
    images = generator.integers(0, len(distinct), rows)
    hashes = distinct[images]
    missing = generator.random(rows) < 0.1
    hashes[missing] = 0
    for chunk in range(3):
        part = hashes[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]
        folder.write(hashes_name(chunk), part.astype("<u8").tobytes())
    write_duplicates(folder, 3)
    seen, expected = set(), []
    for row in np.flatnonzero(~missing).tolist():
        if images[row] in seen:
            expected.append(row)
        seen.add(images[row])
    assert read_duplicates(folder).tolist() == expected
    assert 10_000 < len(expected) < rows
