"""Dropout and normalization on an even keel: measure the variance shift of a trained network and repair it.

`trace` reads a model into a `LayerGraph`, `variance_shift` measures each norm layer, `reestimate_` repairs them;
without data, `predict_shift` and `correct_` do. `lint` says where dropout breaks the guidelines, `fix` moves it.
"""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

# Names are listed once, in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
try:
    __version__ = version("evenkeel")
except PackageNotFoundError:  # a checkout on the path that is not installed
    __version__ = "0+unknown"
