"""The folder that is handed in, and its model card."""
