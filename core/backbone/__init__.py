"""The base model as training and rendering meet it: text, latents, and what fits on the device."""
