"""Checkpoints in time: copied, sealed, written in the background, kept or deleted, found again."""
