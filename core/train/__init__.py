"""Training one LoRA, and the state from which it resumes byte for byte."""
