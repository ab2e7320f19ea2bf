"""How much one picture of Kolors takes: memory for each latent cell, work at 1024 px. One place for worker
and driver; no torch.

Memory by the bytes of a number: measured in half precision (docs/measurements.md), counted in fp32 on tensors
that have a shape but no memory; at rank 16, and rank 128 keeps 2 % more. Work in TFLOP at batch 1, counted on
DiffSynth's own classes.
"""

KEPT_BYTES = {2: 450_000, 4: 700_000}  # a training step's activations until its way back
# the same where blocks keep their inputs alone, and one at a time is computed again
RECOMPUTED_BYTES = {2: 53_000, 4: 106_000}
DRAWN_BYTES = {2: 10_500, 4: 21_000}  # at the most while drawing; guidance draws each picture twice

STEP_TFLOP = 14.5  # a LoRA training step
RECOMPUTED_STEP_TFLOP = 20.9  # the same with blocks computed again
FORWARD_TFLOP = 6.96
# a training picture through the VAE, as it is and mirrored, and its caption through ChatGLM3-6B
ENCODED_TFLOP = 2 * 4.9 + 3.2

# a picture through CLIP ViT-L/14, measured beside an H100: its resizing on the CPU takes longer than the
# model
SCORE_S = 0.04
