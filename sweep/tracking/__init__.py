"""How a study gets into MLflow (tracking.py, also while MLflow is down), and how it is browsed there."""
