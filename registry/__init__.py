"""Tasks, deltas, lineage and scores in SQL, with their bytes in a content-addressed blob store.

`Registry.open(url, blobs)` opens it; its methods read, `Registry.unit_of_work()` writes. `claim_next` and the other
claim functions share a stream among controllers, `save_checkpoint` lets one controller continue where another died,
`find_damage` checks integrity, `upgrade` migrates the schema, `dump_registry` and `restore_registry` export and import
everything as one file.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
