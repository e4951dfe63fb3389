"""Engines that run language models for more than one part: each is imported where it is used, and may be absent."""
