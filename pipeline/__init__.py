"""The commands (`python -m pipeline.X`, one file each) and the loader, trainer and evaluation behind them."""
