"""Looking at a data set: its summary, whether its shards are whole, and one sample of it."""
