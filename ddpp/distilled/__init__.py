"""A distilled dataset: what is in it, what it must be like, and its files."""

from ddpp.distilled.dataset import DistilledDataset

__all__ = ["DistilledDataset"]
