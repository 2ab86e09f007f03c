"""The parts of `pipeline.embed`: features of a data set, written piece by piece, and read again."""
