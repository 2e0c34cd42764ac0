"""Task and stream specifications, and the loading of their rows: no training, no database."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
