"""Tracking: send the measurements of runs to MLflow. Training never waits for MLflow.

    journal          one append-only file per run, written by the training thread
    sender           a process that sends a journal to MLflow while the run is training
    sync             sends what MLflow lacks, after an outage or a kill
    database         MLflow's URI, and the creation of its database
    journal_replay   sends the entries of one journal
    experiments      an experiment of MLflow, and the columns of its table
    parameters       the settings that MLflow shows
    pages            MLflow's pages, as `genflow ui` serves them
    mlflow_client    MLflow's client, database and errors
    model_package    a checkpoint as an MLflow model
    pyfunc_model     the code of the model that MLflow loads and serves
    model_registry   registered models and their aliases
"""
