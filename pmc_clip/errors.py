"""The one error that this package raises for what a user can put right."""


class ModelError(ValueError):
    """A model, config, checkpoint or tokeniser is not as it must be; the message says the remedy."""
