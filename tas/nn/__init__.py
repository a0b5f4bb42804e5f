"""Layers: how labels pass them, what they cost, how they are cut and how they are opened for search."""
