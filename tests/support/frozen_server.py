"""The last import of a server that forks: its children share its objects, instead of copying them to collect them."""

import gc

gc.collect()
gc.freeze()
