"""Shipped configurations: one YAML file for each runnable setup."""
