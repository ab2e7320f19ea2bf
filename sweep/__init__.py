"""What runs, where and when."""
import os

# MLflow 3.17 tells its makers of every use, unless this is set before it is imported (mlflow/telemetry).
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
