"""Verbs: each does one thing to values and models, and none imports another."""
