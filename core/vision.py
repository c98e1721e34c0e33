"""torchvision beside a torch without CUDA."""

from threading import Lock
from types import ModuleType
from typing import Any

_OPERATORS = ("nms", "qnms")
_lock = Lock()
_kept: list[Any] = []  # torch drops a library's definitions when its last reference goes


def torchvision() -> ModuleType:
    """Return torchvision, with the two operators defined that its import asks for and its CUDA library would bring.

    The one build of torchvision 0.28 on the package index is for CUDA. Beside CPU torch its library does not load,
    and the import stops where it describes `nms` and `qnms`. Both are declared without an implementation: datasets,
    transforms and models never call them. A torchvision that imports as it is, and a torch with CUDA, are left alone.
    """
    import torch

    with _lock:
        try:
            import torchvision
        except RuntimeError as error:
            if torch.version.cuda is not None or "torchvision::nms" not in str(error):
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in _OPERATORS:
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept.append(library)
            import torchvision
    return torchvision
