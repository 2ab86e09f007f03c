"""The parts of `pipeline.train`: where a run starts, its steps, how long it is, what it leaves and says."""
