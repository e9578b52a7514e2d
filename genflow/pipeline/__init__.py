"""Pipelines: graphs of stages, checked before any stage runs.

    graph    a pipeline file as a graph of stages
    plan     a dry run: the state of each stage, such as cached or to do
    study    seeds x runs x datasets as a pipeline
    latents  the stages that make the latents of a dataset
"""
