"""Few-shot grid puzzles: tasks, transformations, text, voting. Pure functions and data; no models."""
