"""How a study gets into MLflow, and how it is browsed there."""
