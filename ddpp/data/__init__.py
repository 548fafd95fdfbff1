"""Images: where they come from, how they are preprocessed and varied."""

from ddpp.data.images import ImageData, Split, load_data

__all__ = ["ImageData", "Split", "load_data"]
