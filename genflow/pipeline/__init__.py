"""Pipelines: stages and what they need from each other, as values that are checked before anything runs.

    graph    a pipeline file as a graph of stages
    plan     a dry run: which stages are cached and which are to do
    study    seeds x runs x datasets as a pipeline
"""
