"""The parts of `pipeline.loader`: a batch and its making, a sample and what is bad about it, what it took."""
