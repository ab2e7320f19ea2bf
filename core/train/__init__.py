"""Training one LoRA, and the state from which it can go on."""
