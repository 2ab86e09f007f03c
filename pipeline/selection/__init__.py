"""Choosing samples of existing shards: by an expression, by a list of ids, and packing them anew."""
