"""Evaluators: what `pipeline.evaluate`, and validation during training, find out about a model.

To add one, write a module here with a class that has the three members of `evaluator.Evaluator`, and name it
in `tasks.py`. It gets a `Subject` (model, data, processes; features are computed once, however many
evaluators ask for them), runs on all ranks, and returns `Findings` on the main one.
"""
