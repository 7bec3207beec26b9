"""What a process has imported from which ranks are forked: fork servers import what they are told to.

A rank that writes into a page that it inherits has a copy of it from then on, and Python's search for garbage
writes into every object that it looks at. It passes over those that are frozen, so that their pages stay
shared.
"""

# ruff: noqa: E402, F401
import gc

gc.disable()  # a fifth of the time that these imports take would be spent looking for garbage

import torch._dynamo  # torch fetches it when a process makes its first optimizer, for a second
import torchmetrics.functional.image  # by which the similarity of images is measured; another second

import rehearsal_kit.rank.training_loop

gc.freeze()
gc.enable()
