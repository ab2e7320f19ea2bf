"""Memory and work that one image of Kolors takes, for worker and driver; imports no torch.

Memory is bytes per latent cell, by the bytes of a number (2: half precision, 4: fp32). Half precision was
measured (docs/measurements.md), fp32 counted on tensors without storage; at rank 16, and rank 128 takes 2 %
more. Work is TFLOP at 1024 px and batch 1, counted on DiffSynth's own classes.
"""

KEPT_BYTES = {2: 450_000, 4: 700_000}  # a training step's activations until its backward pass
# the same with gradient checkpointing: blocks keep only their inputs, and one at a time is recomputed
RECOMPUTED_BYTES = {2: 53_000, 4: 106_000}
DRAWN_BYTES = {2: 10_500, 4: 21_000}  # peak while rendering; guidance renders each image twice

STEP_TFLOP = 14.5  # a LoRA training step
RECOMPUTED_STEP_TFLOP = 20.9  # the same with gradient checkpointing
FORWARD_TFLOP = 6.96
# a training image through the VAE, as it is and mirrored, and its caption through ChatGLM3-6B
ENCODED_TFLOP = 2 * 4.9 + 3.2

# an image through CLIP ViT-L/14, measured with an H100: resizing on the CPU takes longer than the model
SCORE_S = 0.04
