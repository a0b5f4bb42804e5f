"""Training and test batches: named data sets, image folders, tensors, and the user's own loaders."""

from tas.data.catalog import load
from tas.data.loaders import LoaderSource, as_source
from tas.data.source import Batch, Batches, Source
from tas.data.tensors import TensorSource

__all__ = ["Batch", "Batches", "LoaderSource", "Source", "TensorSource", "as_source", "load"]
