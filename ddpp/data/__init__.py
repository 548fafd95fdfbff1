"""Images: where they come from, how they are preprocessed and varied."""

from ddpp.data.images import STARTS, ImageData, Split
from ddpp.data.loading import from_arrays, from_datasets, load_data

__all__ = ["STARTS", "ImageData", "Split", "from_arrays", "from_datasets", "load_data"]
