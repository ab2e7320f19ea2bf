"""Memory that one image of Kolors takes, for worker and driver; imports no torch.

It is bytes per latent cell, by the bytes of a number (2: half precision, 4: fp32). Half precision was
measured (docs/measurements.md), fp32 counted on tensors without storage; at rank 16, and rank 128 takes 2 %
more.
"""

KEPT_BYTES = {2: 450_000, 4: 700_000}  # a training step's activations until its backward pass
# the same with gradient checkpointing: blocks keep only their inputs, and one at a time is recomputed
RECOMPUTED_BYTES = {2: 53_000, 4: 106_000}
DRAWN_BYTES = {2: 10_500, 4: 21_000}  # peak while rendering; guidance renders each image twice
