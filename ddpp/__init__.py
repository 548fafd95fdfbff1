"""Dataset Distillation Using Parameter Pruning (Li, Togo, Ogawa, Haseyama), from the teachers to
the distilled file.
"""

from ddpp.data import ImageData, from_arrays, from_datasets, load_data
from ddpp.data.folder import pack_folder
from ddpp.distilled import DistilledDataset
from ddpp.distilling import DistillConfig, distill
from ddpp.evaluating import Evaluation, Protocol, evaluate
from ddpp.experiments.comparing import compare
from ddpp.experiments.recipes import Recipe, recipe
from ddpp.foundation.errors import Error
from ddpp.foundation.fingerprints import custom
from ddpp.judging import export, judge, open_set
from ddpp.networks import VGG11, AlexNet, ConvNet, NetworkConfig, ResNet18
from ddpp.pruning import keep_mask, matching_loss, similarity
from ddpp.teachers import TeacherConfig, Teachers, train_teachers

__version__ = "0.1.0"  # and in pyproject.toml

__all__ = [
    "VGG11",
    "AlexNet",
    "ConvNet",
    "DistillConfig",
    "DistilledDataset",
    "Error",
    "Evaluation",
    "ImageData",
    "NetworkConfig",
    "Protocol",
    "Recipe",
    "ResNet18",
    "TeacherConfig",
    "Teachers",
    "compare",
    "custom",
    "distill",
    "evaluate",
    "export",
    "from_arrays",
    "from_datasets",
    "judge",
    "keep_mask",
    "load_data",
    "matching_loss",
    "open_set",
    "pack_folder",
    "recipe",
    "similarity",
    "train_teachers",
]
