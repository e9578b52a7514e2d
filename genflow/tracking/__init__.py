"""Tracking: what a run measured, on its way to MLflow. Training never waits for MLflow.

    journal          one file a run, appended by the training thread
    sender           a process that sends a journal to MLflow while the run is under way
    sync             send the journals that MLflow lacks, after an outage or a kill
    database         where MLflow is, and that its database exists
    mlflow_client    every call to MLflow
    pyfunc_model     the model that MLflow loads and serves
    model_registry   registered models and their aliases
"""
