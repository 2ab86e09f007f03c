"""Describing WebDataset tars that others made: which shards there are, what is in them, and what is odd."""
