"""Apply deltas, one or many in a mixed batch, to a frozen backbone, and undo it exactly.

`attach.attached` installs hooks for one delta or for a `mixed_batch.MixedBatch`; a `bank.Bank` keeps many deltas
stacked on the device, in the shapes that `layout` computes. `prefix_attention` and `soft_tokens` serve the two sites
that hooks on a module's output cannot: an attention's keys and values, and the tokens of a whole stack.
"""
