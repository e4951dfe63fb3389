"""Micro-grids: an embedded world of small grid puzzles whose rules want different augmentations."""
