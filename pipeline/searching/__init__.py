"""The parts of `pipeline.search`: the query's features, the nearest rows, and a page to ask on."""
