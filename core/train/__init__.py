"""Training one LoRA; state.py and draw.py make a resumed training equal to an uninterrupted one."""
