"""Who picks the next settings: the Optuna study, its sampler and its file."""
