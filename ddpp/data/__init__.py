"""Images: where they come from, how they are preprocessed and varied."""

from ddpp.data.images import ImageData, Split, from_arrays, from_datasets, load_data

__all__ = ["ImageData", "Split", "from_arrays", "from_datasets", "load_data"]
